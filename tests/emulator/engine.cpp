// See emulator.h. Fibers, their scheduler, meeting points, shared memory and asynchronous copies.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <vector>

#include "emulator/emulator.h"
#include "emulator/fiber.h"

namespace tq4::emulator {
namespace {

constexpr std::size_t kStackBytes = std::size_t{192} << 10;
constexpr unsigned kMaxThreads = 1024;

struct Copy {
  std::uint32_t to;
  const void* from;
  int bytes, valid;
  std::uint32_t bar;  // bulk copies
};

struct Store {
  void* to;
  std::uint32_t from;
  int bytes;
};

/// What a thread waits for.
enum class State { Ready, Meeting, Barrier, Named, Mbarrier, Done };

struct Lane {
  Fiber fiber;
  Index index{};
  int warp = 0, lane = 0;
  State state = State::Ready;
  std::uint32_t bar = 0, parity = 0;
  std::vector<std::vector<Copy>> groups;  // cp.async: committed ones, oldest first
  std::vector<Copy> open;
  std::vector<Store> stores;  // bulk copies to global memory that may still read
};

/// Lanes on their way to one meeting point.
struct Group {
  const char* what = nullptr;
  std::uint32_t mask = 0, arrived = 0;
  void* operands[32] = {};
};

struct Warp {
  std::vector<Group> groups;
  int meetings = 0;
};

struct Mbarrier {  // 8 bytes in shared memory
  std::int32_t bytes;
  std::int16_t pending;
  std::uint8_t count, phase;
};
static_assert(sizeof(Mbarrier) == 8);

Options options_from_environment() {
  Options o;
  const char* text = std::getenv("TQ4_EMULATOR");
  if (!text) return o;
  const std::string s = text;
  o.seed = std::strtoull(text, nullptr, 10);
  const std::size_t comma = s.find(',');
  if (comma == std::string::npos) return o;
  const std::size_t next = s.find(',', comma + 1);
  const std::string copies = s.substr(comma + 1, next == std::string::npos ? next : next - comma - 1);
  o.copies = copies == "eager" ? Copies::Eager : copies == "lazy" ? Copies::Lazy : Copies::Random;
  if (next != std::string::npos) o.sm_count = std::max(1, std::atoi(s.c_str() + next + 1));
  return o;
}

class Engine {
 public:
  Engine() {
    void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks_ = static_cast<std::uint8_t*>(memory);
    shared_memory_.resize(kSharedEnd / sizeof(Line));
  }
  ~Engine() { munmap(stacks_, kMaxThreads * kStackBytes); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void launch(const char* name, Index blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel,
              bool ascending) {
    if (current_) fail("a kernel launches another");
    name_ = name;
    if (threads == 0 || threads > kMaxThreads || blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.y > 65535 || blocks.z > 65535)
      throw Error(std::string(name) + ": a grid of " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " x " +
                  std::to_string(blocks.z) + " blocks of " + std::to_string(threads) + " threads cannot be launched");
    if (kSharedBase + shared_bytes > kSharedEnd)
      throw Error(std::string(name) + ": " + std::to_string(shared_bytes) + " bytes of dynamic shared memory are more than there are");
    grid_ = blocks;
    block_ = {threads, 1, 1};
    shared_bytes_ = shared_bytes;
    kernel_ = &kernel;
    state_ = options().seed * 0x9e3779b97f4a7c15ull + 1;
    std::vector<std::uint64_t> order(static_cast<std::uint64_t>(blocks.x) * blocks.y * blocks.z);
    std::iota(order.begin(), order.end(), 0);
    if (options().seed != 0 && !ascending) {
      for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(static_cast<std::uint32_t>(i))]);
    }
    for (const std::uint64_t b : order) {
      block_index_ = {static_cast<unsigned>(b % blocks.x), static_cast<unsigned>(b / blocks.x % blocks.y),
                      static_cast<unsigned>(b / blocks.x / blocks.y)};
      run_block(threads);
    }
  }

  std::uint32_t draw(std::uint32_t n) {  // splitmix64
    if (options().seed == 0 || n <= 1) return 0;
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return static_cast<std::uint32_t>((x ^ x >> 31) >> 32) % n;
  }

  [[noreturn]] void fail(const std::string& what) {
    if (!current_) throw Error(what);
    throw Error(where(*current_) + ": " + what);
  }
  std::string where(const Lane& l) const {
    const auto triple = [](const Index& i) { return std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z); };
    return std::string(name_) + " block " + triple(block_index_) + " warp " + std::to_string(l.warp) + " lane " + std::to_string(l.lane);
  }

  Lane& current() { return *current_; }
  const Lane* current_or_null() const { return current_; }
  const Index& block_index() const { return block_index_; }
  const Index& block_size() const { return block_; }
  const Index& grid_size() const { return grid_; }

  std::uint8_t* shared_base() { return reinterpret_cast<std::uint8_t*>(shared_memory_.data()); }
  std::uint8_t* shared(std::uint32_t address, std::size_t bytes, std::size_t alignment) {
    if (address % alignment != 0)
      fail("shared-memory access of " + std::to_string(bytes) + " bytes at address " + std::to_string(address) + " is misaligned");
    if (address < kSharedBase || address + bytes > kSharedBase + shared_bytes_)
      fail("shared-memory access of " + std::to_string(bytes) + " bytes at address " + std::to_string(address) +
           " is outside of the block's dynamic part, [1024, " + std::to_string(kSharedBase + shared_bytes_) + ")");
    return shared_base() + address;
  }
  std::uint32_t address_of(const void* p) {
    const auto offset = static_cast<const std::uint8_t*>(p) - shared_base();
    if (offset < kSharedBase || offset > static_cast<std::ptrdiff_t>(kSharedBase + shared_bytes_))
      fail("the pointer is not into dynamic shared memory");
    return static_cast<std::uint32_t>(offset);
  }

  /// The current thread stops until somebody makes it Ready.
  void wait(State state) {
    Lane& me = *current_;
    me.state = state;
    me.fiber.leave(scheduler_);
  }

  void meet(const char* what, std::uint32_t mask, void* operand, WarpWork work) {
    Lane& me = *current_;
    Warp& warp = warps_[static_cast<std::size_t>(me.warp)];
    const std::uint32_t bit = 1u << me.lane;
    if ((mask & bit) == 0) fail(std::string(what) + ": the mask lacks the calling lane");
    auto group = std::find_if(warp.groups.begin(), warp.groups.end(), [&](const Group& g) { return (g.mask & mask) != 0; });
    if (group == warp.groups.end()) {
      for (int l = 0; l < 32; ++l) {
        const std::size_t thread = static_cast<std::size_t>(me.warp) * 32 + static_cast<std::size_t>(l);
        if ((mask >> l & 1) != 0 && (thread >= lanes_.size() || lanes_[thread]->state == State::Done))
          fail(std::string(what) + ": lane " + std::to_string(l) + " of the mask has ended");
      }
      warp.groups.push_back({});
      group = warp.groups.end() - 1;
      group->what = what;
      group->mask = mask;
    } else if (group->mask != mask || (group->what != what && std::strcmp(group->what, what) != 0)) {
      fail("is at " + std::string(what) + " while other lanes of the warp wait at " + group->what);
    }
    group->operands[me.lane] = operand;
    group->arrived |= bit;
    if (group->arrived != mask) {
      wait(State::Meeting);
      return;
    }
    if (work) work(group->operands);
    for (int l = 0; l < 32; ++l) {
      if ((mask >> l & 1) != 0 && l != me.lane) lanes_[static_cast<std::size_t>(me.warp * 32 + l)]->state = State::Ready;
    }
    warp.groups.erase(group);
    ++warp.meetings;
    wait(State::Ready);  // in the lanes' own order from here on
  }

  void barrier() {
    ++at_barrier_;
    if (at_barrier_ == live_) {
      release_barrier();
      wait(State::Ready);
    } else {
      wait(State::Barrier);
    }
  }

  void named_barrier(int id, int threads, bool waits) {
    if (id < 0 || id > 15) fail("named barrier " + std::to_string(id));
    NamedBarrier& b = named_[id];
    if (b.arrived > 0 && b.threads != threads)
      fail("named barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads is under way with " +
           std::to_string(b.threads));
    b.threads = threads;
    if (++b.arrived == threads) {
      b.arrived = 0;
      for (const auto& l : lanes_) {
        if (l->state == State::Named && l->bar == static_cast<std::uint32_t>(id)) l->state = State::Ready;
      }
    } else if (waits) {
      current_->bar = static_cast<std::uint32_t>(id);
      wait(State::Named);
    }
  }

  // ---- Asynchronous copies ----

  void copy_async(const Copy& c) {
    std::uint8_t* to = shared(c.to, static_cast<std::size_t>(c.bytes), static_cast<std::size_t>(c.bytes));
    if (reinterpret_cast<std::uintptr_t>(c.from) % static_cast<unsigned>(c.bytes) != 0) fail("cp.async: the source is misaligned");
    if (c.valid < 0 || c.valid > c.bytes) fail("cp.async: " + std::to_string(c.valid) + " valid bytes of " + std::to_string(c.bytes));
    std::memset(to, 0xff, static_cast<std::size_t>(c.bytes));
    if (arrives_now()) {
      deliver(c);
    } else {
      current_->open.push_back(c);
    }
  }
  void copy_async_commit() {
    current_->groups.push_back(std::move(current_->open));
    current_->open.clear();
  }
  void copy_async_wait(int pending) {
    auto& groups = current_->groups;
    const std::size_t done = groups.size() > static_cast<std::size_t>(pending) ? groups.size() - static_cast<std::size_t>(pending) : 0;
    for (std::size_t i = 0; i < done; ++i) {
      for (const Copy& c : groups[i]) deliver(c);
    }
    groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(done));
  }

  Mbarrier& mbarrier_at(std::uint32_t bar) { return *reinterpret_cast<Mbarrier*>(shared(bar, 8, 8)); }
  void mbarrier_init(std::uint32_t bar, int count) {
    mbarrier_at(bar) = {0, static_cast<std::int16_t>(count), static_cast<std::uint8_t>(count), 0};
  }
  void mbarrier_arrive_expect(std::uint32_t bar, int bytes) {
    Mbarrier& m = mbarrier_at(bar);
    if (m.phase > 1 || m.pending < 1)
      fail("mbarrier at " + std::to_string(bar) + ": not initialised, or more arrivals in a phase than it counts");
    m.bytes += bytes;
    --m.pending;
    complete(bar, m);
  }
  void mbarrier_wait(std::uint32_t bar, std::uint32_t parity) {
    for (;;) {
      const Mbarrier& m = mbarrier_at(bar);
      if (m.phase > 1) fail("mbarrier at " + std::to_string(bar) + " is not initialised");
      if (m.phase != parity) return;
      current_->bar = bar;
      current_->parity = parity;
      wait(State::Mbarrier);
    }
  }
  void bulk_copy(const Copy& c) {
    if (c.bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(c.from) % 16 != 0) fail("cp.async.bulk: source or size is no multiple of 16");
    std::uint8_t* to = shared(c.to, static_cast<std::size_t>(c.bytes), 16);
    std::memset(to, 0xff, static_cast<std::size_t>(c.bytes));
    bulk_.push_back(c);
    if (arrives_now()) arrive(bulk_.size() - 1);
  }
  void bulk_store(const Store& c) {
    if (c.bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(c.to) % 16 != 0)
      fail("cp.async.bulk: destination or size is no multiple of 16");
    shared(c.from, static_cast<std::size_t>(c.bytes), 16);
    current_->stores.push_back(c);
    if (arrives_now()) bulk_stores_wait();
  }
  void bulk_stores_wait() {
    for (const Store& c : current_->stores) std::memcpy(c.to, shared_base() + c.from, static_cast<std::size_t>(c.bytes));
    current_->stores.clear();
  }

 private:
  struct alignas(1024) Line {
    std::uint8_t bytes[1024];
  };
  bool arrives_now() { return options().copies == Copies::Eager || (options().copies == Copies::Random && draw(3) == 0); }

  void deliver(const Copy& c) {
    std::uint8_t* to = shared_base() + c.to;
    std::memcpy(to, c.from, static_cast<std::size_t>(c.valid));
    std::memset(to + c.valid, 0, static_cast<std::size_t>(c.bytes - c.valid));
  }
  /// Bulk copy i reaches shared memory and its mbarrier.
  void arrive(std::size_t i) {
    const Copy c = bulk_[i];
    bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(i));
    deliver(c);
    Mbarrier& m = *reinterpret_cast<Mbarrier*>(shared_base() + c.bar);
    m.bytes -= c.bytes;
    complete(c.bar, m);
  }
  void complete(std::uint32_t bar, Mbarrier& m) {
    if (m.pending != 0 || m.bytes != 0) return;
    m.phase ^= 1;
    m.pending = m.count;
    for (const auto& l : lanes_) {
      if (l->state == State::Mbarrier && l->bar == bar) l->state = State::Ready;
    }
  }

  void release_barrier() {
    at_barrier_ = 0;
    for (const auto& l : lanes_) {
      if (l->state == State::Barrier) l->state = State::Ready;
    }
  }

  static void enter(void* self) {
    auto& engine = *static_cast<Engine*>(self);
    Lane& me = *engine.current_;
    try {
      (*engine.kernel_)();
      for (const auto& g : me.groups) {
        for (const Copy& c : g) engine.deliver(c);
      }
      for (const Copy& c : me.open) engine.deliver(c);
      if (!me.stores.empty()) engine.fail("the thread ended with bulk stores that still read");
    } catch (...) {
      engine.error_ = std::current_exception();
    }
    me.state = State::Done;
    --engine.live_;
    if (engine.live_ > 0 && engine.at_barrier_ == engine.live_) engine.release_barrier();
    me.fiber.leave(engine.scheduler_);
  }

  void run_block(unsigned threads) {
    std::memset(shared_base(), 0xff, kSharedEnd);
    warps_.assign((threads + 31) / 32, Warp{});
    bulk_.clear();
    std::fill(std::begin(named_), std::end(named_), NamedBarrier{});
    error_ = nullptr;
    while (lanes_.size() > threads) lanes_.pop_back();
    for (unsigned t = 0; t < threads; ++t) {
      if (lanes_.size() <= t) lanes_.push_back(std::make_unique<Lane>());
      Lane& l = *lanes_[t];
      l.index = {t, 0, 0};
      l.warp = static_cast<int>(t / 32);
      l.lane = static_cast<int>(t % 32);
      l.state = State::Ready;
      l.groups.clear();
      l.stores.clear();
      l.open.clear();
      l.fiber.prepare(stacks_ + t * kStackBytes, kStackBytes, enter, this);
    }
    live_ = threads;
    at_barrier_ = 0;
    schedule();
    current_ = nullptr;
    if (error_) {
      bulk_.clear();
      std::rethrow_exception(error_);
    }
    while (!bulk_.empty()) {  // nobody waited for them
      throw Error(std::string(name_) + ": the block ended with bulk copies under way");
    }
  }

  bool ready(std::size_t warp) const {
    for (std::size_t t = warp * 32; t < std::min(lanes_.size(), warp * 32 + 32); ++t) {
      if (lanes_[t]->state == State::Ready) return true;
    }
    return false;
  }

  void schedule() {
    std::size_t warp = 0;
    while (live_ > 0 && !error_) {
      if (options().copies == Copies::Random) {
        for (std::size_t i = bulk_.size(); i-- > 0;) {
          if (draw(4) == 0) arrive(i);
        }
      }
      std::size_t looked = 0;
      warp = options().seed == 0 ? 0 : draw(static_cast<std::uint32_t>(warps_.size()));
      while (looked < warps_.size() && !ready(warp)) warp = (warp + 1) % warps_.size(), ++looked;
      if (looked < warps_.size()) {
        run_warp(warp);
      } else if (!bulk_.empty()) {
        arrive(draw(static_cast<std::uint32_t>(bulk_.size())));
      } else {
        stuck();
      }
    }
  }

  /// Some meetings' worth of one warp's lanes, in a direction that changes from turn to turn.
  void run_warp(std::size_t warp) {
    Warp& w = warps_[warp];
    const int until = w.meetings + 1 + static_cast<int>(options().seed == 0 ? 1000000 : draw(24));
    const std::size_t first = warp * 32, count = std::min<std::size_t>(lanes_.size() - first, 32);
    const bool down = draw(2) == 1;
    const std::size_t start = draw(static_cast<std::uint32_t>(count));
    while (w.meetings < until && !error_) {
      bool any = false;
      for (std::size_t i = 0; i < count && !error_; ++i) {
        const std::size_t turn = (start + i) % count;
        Lane& l = *lanes_[first + (down ? count - 1 - turn : turn)];
        if (l.state != State::Ready) continue;
        any = true;
        current_ = &l;
        l.fiber.enter(scheduler_);
      }
      if (!any) return;
    }
  }

  void stuck() {
    std::string text = std::string(name_) + ": nothing can go on. ";
    for (const auto& l : lanes_) {
      if (l->state == State::Done || l->state == State::Ready) continue;
      current_ = l.get();
      text += where(*l) + " waits at ";
      if (l->state == State::Barrier) text += "__syncthreads";
      if (l->state == State::Named) text += "named barrier " + std::to_string(l->bar);
      if (l->state == State::Mbarrier) text += "mbarrier " + std::to_string(l->bar) + " parity " + std::to_string(l->parity);
      if (l->state == State::Meeting) {
        for (const Group& g : warps_[static_cast<std::size_t>(l->warp)].groups) {
          if ((g.arrived >> l->lane & 1) != 0) text += g.what;
        }
      }
      text += "; ";
      if (text.size() > 2000) break;
    }
    error_ = std::make_exception_ptr(Error(text));
  }

  const char* name_ = "";
  std::uint8_t* stacks_;
  std::vector<Line> shared_memory_;
  std::size_t shared_bytes_ = 0;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Warp> warps_;
  std::vector<Copy> bulk_;
  struct NamedBarrier {
    int arrived = 0, threads = 0;
  };
  NamedBarrier named_[16];
  Lane* current_ = nullptr;
  FiberPlace scheduler_;
  unsigned live_ = 0, at_barrier_ = 0;
  Index grid_{}, block_{}, block_index_{};
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  std::uint64_t state_ = 1;
};

Engine& engine() {
  static Engine e;
  return e;
}

}  // namespace

Options& options() {
  static Options o = options_from_environment();
  return o;
}

void emulate(const char* name, Index blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel,
             bool ascending) {
  engine().launch(name, blocks, threads, shared_bytes, kernel, ascending);
}

const Index& thread_index() { return engine().current().index; }
const Index& block_index() { return engine().block_index(); }
const Index& block_size() { return engine().block_size(); }
const Index& grid_size() { return engine().grid_size(); }
int lane_id() { return engine().current().lane; }
void fail(const std::string& what) { engine().fail(what); }
std::uint8_t* shared_at(std::uint32_t address, std::size_t bytes) { return engine().shared(address, bytes, bytes); }
std::uint8_t* shared_range(std::uint32_t address, std::size_t bytes, std::size_t alignment) {
  return engine().shared(address, bytes, alignment);
}
std::uint32_t shared_address_of(const void* p) { return engine().address_of(p); }
void meet(const char* what, std::uint32_t mask, void* operand, WarpWork work) { engine().meet(what, mask, operand, work); }
void barrier() { engine().barrier(); }
void named_barrier(int id, int threads, bool waits) { engine().named_barrier(id, threads, waits); }
std::uint32_t draw(std::uint32_t n) { return engine().draw(n); }
void copy_async(std::uint32_t to, const void* from, int bytes, int valid) { engine().copy_async({to, from, bytes, valid, 0}); }
void copy_async_commit() { engine().copy_async_commit(); }
void copy_async_wait(int pending) { engine().copy_async_wait(pending); }
void mbarrier_init(std::uint32_t bar, int count) { engine().mbarrier_init(bar, count); }
void mbarrier_arrive_expect(std::uint32_t bar, int bytes) { engine().mbarrier_arrive_expect(bar, bytes); }
void mbarrier_wait(std::uint32_t bar, std::uint32_t parity) { engine().mbarrier_wait(bar, parity); }
void bulk_copy(std::uint32_t to, const void* from, int bytes, std::uint32_t bar) { engine().bulk_copy({to, from, bytes, bytes, bar}); }
void bulk_store(void* to, std::uint32_t from, int bytes) { engine().bulk_store({to, from, bytes}); }
void bulk_stores_wait() { engine().bulk_stores_wait(); }

}  // namespace tq4::emulator
