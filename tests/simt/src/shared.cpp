// Shared memory: poisoned, bounded, and watched for races.
//
// The kernels are compiled with -fsanitize=thread but not linked with ThreadSanitizer: the calls that the compiler puts
// before every load and store end here. Two accesses to one byte by two threads, one of them a plain store, are a race
// unless a barrier lies between them that both threads took part in. Since meetings are numbered in time, that is so if
// the last one that both were in is younger than the earlier access; the schedule need not make the race bite. Per byte
// the last store and the last loads from two warps are remembered: there are no false alarms, and a race that one
// schedule hides shows in another. With AddressSanitizer the same bounds hold by poisoning, and races are not watched.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <cstdio>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)0)
#endif

namespace simt {
namespace {

constexpr size_t kSlotBytes = 256 << 10, kSlots = 1024, kArenaBytes = kSlotBytes * kSlots;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type

struct Access {
  uint64_t time : 40, thread : 23, atomic : 1;
};
struct Byte {
  Access store, load, load_of_other_warp;
};
struct Slot {
  Block* owner = nullptr;
  std::vector<Byte> bytes;
};

char* arena_start() {
  void* memory = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  ASAN_POISON_MEMORY_REGION(memory, kArenaBytes);
  return static_cast<char*>(memory);
}

char* const arena = arena_start();
Slot slots[kSlots];

enum class Kind { kLoad, kStore, kAtomic };

const char* verb(Kind kind) {
  return kind == Kind::kLoad ? "loaded" : kind == Kind::kStore ? "stored" : "atomically updated";
}

[[noreturn]] void report(const Thread& self, const void* code, const std::string& what) {
  fail(self, what + source_line(code));
}

bool races(const Access& before, const Thread& self, const Block& owner) {
  return before.time >= owner.started && before.thread != self.id &&
         last_meeting(thread_by_id(unsigned(before.thread)), self) <= before.time;
}

void watch(const void* address, size_t bytes, Kind kind, const void* code) {
  size_t distance = size_t(static_cast<const char*>(address) - arena);
  if (distance >= kArenaBytes || current == nullptr) return;
  const Thread& self = *current;
  Slot& slot = slots[distance / kSlotBytes];
  size_t offset = distance % kSlotBytes;
  std::string place = "byte " + std::to_string(offset) + " of shared memory";
  if (slot.owner == nullptr) report(self, code, place + " of a block that has ended is " + verb(kind));
  const Block& owner = *slot.owner;
  if (owner.cluster != self.block->cluster)
    report(self, code, place + " of a block outside the cluster is " + verb(kind));
  if (offset + bytes > owner.shared_bytes)
    report(self, code, place + " is " + verb(kind) + ", but the block has " + std::to_string(owner.shared_bytes));
  bool atomic = kind == Kind::kAtomic;
  Access access{now, self.id, atomic};
  for (Byte* byte = &slot.bytes[offset]; bytes != 0; ++byte, --bytes) {
    auto check = [&](const Access& before, const char* verb_before) {
      if ((before.atomic && atomic) || !races(before, self, owner)) return;
      report(self, code,
             "race: " + place + " is " + verb_before + " by " + name(thread_by_id(unsigned(before.thread))) +
                 ", then " + verb(kind) + ", and no barrier of both lies between");
    };
    check(byte->store, byte->store.atomic ? verb(Kind::kAtomic) : verb(Kind::kStore));
    if (kind == Kind::kLoad) {
      if (byte->load.time >= owner.started && thread_by_id(unsigned(byte->load.thread)).warp != self.warp)
        byte->load_of_other_warp = byte->load;
      byte->load = access;
    } else {
      check(byte->load, verb(Kind::kLoad));
      check(byte->load_of_other_warp, verb(Kind::kLoad));
      byte->store = access;
    }
  }
}

}  // namespace

#ifdef SIMT_ASAN
// What the sanitizer reports is about this thread; it ends the process.
const bool names_thread = [] {
  __sanitizer_set_death_callback([] {
    if (current) std::fprintf(stderr, "in %s\n", whereabouts(*current).c_str());
  });
  return true;
}();
#endif

void acquire_shared(Block& block, size_t bytes) {
  Slot* slot = std::find_if(slots, slots + kSlots, [](const Slot& s) { return s.owner == nullptr; });
  if (slot == slots + kSlots) throw std::runtime_error("more than " + std::to_string(kSlots) + " blocks at a time");
  slot->owner = &block;
  if (slot->bytes.size() < bytes) slot->bytes.resize(bytes);
  block.shared = arena + size_t(slot - slots) * kSlotBytes;
  block.shared_bytes = bytes;
  ASAN_UNPOISON_MEMORY_REGION(block.shared, bytes);
  std::memset(block.shared, kPoison, bytes);
}

void release_shared(Block& block) {
  slots[size_t(block.shared - arena) / kSlotBytes].owner = nullptr;
  ASAN_POISON_MEMORY_REGION(block.shared, kSlotBytes);
}

void note_atomic(const void* address, size_t bytes) {
  watch(address, bytes, Kind::kAtomic, __builtin_return_address(0));
  maybe_yield();
}

}  // namespace simt

// ---- what the compiler calls ----

#ifndef SIMT_ASAN
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

void __tsan_read_range(void* address, size_t bytes) {
  simt::watch(address, bytes, simt::Kind::kLoad, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  simt::watch(address, bytes, simt::Kind::kStore, __builtin_return_address(0));
}

// The guard of a static variable in a function, on the host.
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int order) { return __atomic_load_n(address, order); }

// Clang's calls for what it would otherwise leave to the C library.
void* __tsan_memset(void* to, int byte, size_t bytes) {
  __tsan_write_range(to, bytes);
  return std::memset(to, byte, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  __tsan_read_range(const_cast<void*>(from), bytes);
  __tsan_write_range(to, bytes);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  __tsan_read_range(const_cast<void*>(from), bytes);
  __tsan_write_range(to, bytes);
  return std::memmove(to, from, bytes);
}

#define SIMT_WATCH(prefix, bytes)                                                 \
  void __tsan_##prefix##read##bytes(void* address) {                              \
    simt::watch(address, bytes, simt::Kind::kLoad, __builtin_return_address(0));  \
  }                                                                               \
  void __tsan_##prefix##write##bytes(void* address) {                             \
    simt::watch(address, bytes, simt::Kind::kStore, __builtin_return_address(0)); \
  }
// A volatile load may be one of many that wait for another thread.
#define SIMT_WATCH_VOLATILE(prefix, bytes)                                        \
  void __tsan_##prefix##volatile_read##bytes(void* address) {                     \
    simt::watch(address, bytes, simt::Kind::kLoad, __builtin_return_address(0));  \
    if (simt::current) simt::maybe_yield();                                       \
  }                                                                               \
  void __tsan_##prefix##volatile_write##bytes(void* address) {                    \
    simt::watch(address, bytes, simt::Kind::kStore, __builtin_return_address(0)); \
  }
#define SIMT_WATCH_ALL(bytes)   \
  SIMT_WATCH(, bytes)           \
  SIMT_WATCH(unaligned_, bytes) \
  SIMT_WATCH_VOLATILE(, bytes)  \
  SIMT_WATCH_VOLATILE(unaligned_, bytes)
SIMT_WATCH_ALL(1)
SIMT_WATCH_ALL(2)
SIMT_WATCH_ALL(4)
SIMT_WATCH_ALL(8)
SIMT_WATCH_ALL(16)
}
#endif
