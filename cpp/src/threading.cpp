// The borrowed OpenMP pool when torch is loaded, a small pool of our own otherwise.
#include "octavo/threading.hpp"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace octavo {
namespace {

// GCC's OpenMP entry points, looked up in the library torch has loaded.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
  int (*max_threads)() = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
  int (*torch_threads)() = nullptr;  // at::get_num_threads; null where torch has none of this name
};

struct LoadedLibraries {
  std::string torch_directory;
  std::vector<std::string> openmp;
};

int collect(dl_phdr_info* info, std::size_t, void* context) {
  auto& found = *static_cast<LoadedLibraries*>(context);
  const std::string path = info->dlpi_name ? info->dlpi_name : "";
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return 0;
  if (path.compare(slash + 1, std::string::npos, "libtorch_cpu.so") == 0) found.torch_directory = path.substr(0, slash);
  if (path.compare(slash + 1, 7, "libgomp") == 0) found.openmp.push_back(path);
  return 0;
}

int count_loads(dl_phdr_info* info, std::size_t, void* context) {
  *static_cast<unsigned long long*>(context) = info->dlpi_adds;
  return 1;
}

// A symbol that torch's library or one of its dependencies (breadth first) resolves to; null when there is none.
void* torch_symbol(const LoadedLibraries& libraries, const char* name) {
  const std::string core = libraries.torch_directory + "/libtorch_cpu.so";
  void* torch = dlopen(core.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return nullptr;
  void* symbol = dlsym(torch, name);
  dlclose(torch);
  return symbol;
}

// Other wheels (scikit-learn, ...) bring a libgomp of their own: only the one torch's symbols resolve to is torch's
// pool.
std::string torch_openmp(const LoadedLibraries& libraries) {
  void* symbol = torch_symbol(libraries, "GOMP_parallel");
  Dl_info where{};
  const bool found = symbol != nullptr && dladdr(symbol, &where) != 0 && where.dli_fname != nullptr;
  return found ? where.dli_fname : "";
}

const OpenMp* find_openmp() {
  LoadedLibraries libraries;
  dl_iterate_phdr(collect, &libraries);
  if (libraries.torch_directory.empty() || libraries.openmp.empty()) return nullptr;
  const std::string path = torch_openmp(libraries);
  void* handle = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return nullptr;
  static OpenMp api;
  api.parallel = reinterpret_cast<decltype(api.parallel)>(dlsym(handle, "GOMP_parallel"));
  api.max_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_max_threads"));
  api.thread_num = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_thread_num"));
  api.num_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_num_threads"));
  api.in_parallel = reinterpret_cast<int (*)()>(dlsym(handle, "omp_in_parallel"));
  api.torch_threads = reinterpret_cast<int (*)()>(torch_symbol(libraries, "_ZN2at15get_num_threadsEv"));
  const bool complete = api.parallel && api.max_threads && api.thread_num && api.num_threads && api.in_parallel;
  return complete ? &api : nullptr;
}

// torch may be imported after octavo: look again whenever the process has loaded another library.
const OpenMp* openmp() {
  static std::atomic<const OpenMp*> known{nullptr};
  if (const OpenMp* api = known.load(std::memory_order_acquire)) return api;
  static std::mutex mutex;
  static unsigned long long loads_seen = 0;
  const std::scoped_lock lock(mutex);
  unsigned long long loads = 0;
  dl_iterate_phdr(count_loads, &loads);
  if (loads == loads_seen) return nullptr;
  loads_seen = loads;
  const OpenMp* api = find_openmp();
  known.store(api, std::memory_order_release);
  return api;
}

thread_local bool inside_region = false;

// Workers that sleep between regions. One region at a time; a second caller runs serially.
class Pool {
 public:
  explicit Pool(int workers) : owner_(getpid()) {
    for (int i = 1; i <= workers; ++i)
      std::thread([this, i] { work(i); }).detach();  // they live as long as the process
  }

  pid_t owner() const { return owner_; }

  void run(int count, detail::RegionBody body, void* context) {
    {
      const std::scoped_lock lock(mutex_);
      body_ = body;
      context_ = context;
      count_ = count;
      pending_ = count - 1;
      ++generation_;
    }
    wake_.notify_all();
    inside_region = true;
    body(context, 0, count);
    inside_region = false;
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void work(int index) {
    inside_region = true;
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= count_) continue;
      const auto body = body_;
      void* context = context_;
      const int count = count_;
      lock.unlock();
      body(context, index, count);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  detail::RegionBody body_ = nullptr;
  void* context_ = nullptr;
  int count_ = 0, pending_ = 0;
  std::uint64_t generation_ = 0;
};

std::atomic<int> own_threads{0};
std::mutex pool_mutex;

int hardware_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

void run_on_own_pool(int count, detail::RegionBody body, void* context) {
  static Pool* pool = nullptr;  // never destroyed: workers may be asleep in it at exit
  static int workers = 0;
  std::unique_lock lock(pool_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    for (int i = 0; i < count; ++i) body(context, i, count);
    return;
  }
  if (pool == nullptr || workers < count - 1 || pool->owner() != getpid()) {  // a forked child has no workers
    workers = std::max(count, hardware_threads()) - 1;
    pool = new Pool(workers);
  }
  pool->run(count, body, context);
}

struct OpenMpRegion {
  const OpenMp* api;
  detail::RegionBody body;
  void* context;
  int count;
};

// The runtime may grant fewer threads than asked: each takes every n-th part.
void openmp_body(void* data) {
  const auto& region = *static_cast<const OpenMpRegion*>(data);
  const int granted = region.api->num_threads();
  inside_region = true;
  for (int i = region.api->thread_num(); i < region.count; i += granted) region.body(region.context, i, region.count);
  inside_region = false;
}

}  // namespace

int threads() {
  if (inside_region) return 1;
  if (const OpenMp* api = openmp()) {
    if (api->in_parallel()) return 1;
    // torch gives a thread its number of OpenMP threads when that thread first asks torch.
    thread_local bool asked = false;
    if (!asked && api->torch_threads != nullptr) {
      asked = true;
      return api->torch_threads();
    }
    return api->max_threads();
  }
  const int chosen = own_threads.load(std::memory_order_relaxed);
  return chosen > 0 ? chosen : hardware_threads();
}

void set_threads(int n) { own_threads.store(std::max(1, n), std::memory_order_relaxed); }

bool borrows_openmp() { return openmp() != nullptr; }

void detail::run_region(int count, RegionBody body, void* context) {
  const OpenMp* api = openmp();
  if (inside_region || (api != nullptr && api->in_parallel())) {
    for (int i = 0; i < count; ++i) body(context, i, count);
    return;
  }
  if (api == nullptr) {
    run_on_own_pool(count, body, context);
    return;
  }
  OpenMpRegion region{api, body, context, count};
  api->parallel(openmp_body, &region, static_cast<unsigned>(count), 0);
}

}  // namespace octavo
