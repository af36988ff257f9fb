// Run a batch of problems on the caller's thread and as many of a pool's as help.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace optctl {

// Call task(i) for i = 0..count-1. The caller works too, and waits only for items that another thread has begun, so
// a pool whose threads are all busy delays nothing and cannot deadlock.
template <class Pool, class Task>
void run_batch(Pool& pool, int64_t count, const Task& task) {
  if (count == 1) return task(0);
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  const int64_t threads = pool.num_threads() < count ? pool.num_threads() : count;
  const int64_t chunk = count / (8 * (threads > 0 ? threads : 1)) + 1;
  auto state = std::make_shared<State>();
  const Task* shared = &task;
  auto work = [state, shared, count, chunk] {
    for (int64_t first; (first = state->next.fetch_add(chunk)) < count;) {
      const int64_t last = first + chunk < count ? first + chunk : count;
      for (int64_t i = first; i < last; ++i) (*shared)(i);
      if (state->done.fetch_add(last - first) + (last - first) == count) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->finished.notify_all();
      }
    }
  };
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done.load() == count; });
}

}  // namespace optctl
