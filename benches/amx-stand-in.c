// AMX in software, for processors with AVX-512 that have no tiles: to be preloaded into a program of halfseg's, so that it runs the
// kernels that are written for tiles. It shows whether they compute the right thing, nothing of their speed.
//
//   cc -O2 -mavx512f -mavx512bw -mf16c -fPIC -shared -o amx.so amx-stand-in.c
//
// What asks the processor for its features, and Linux for the tiles, lies at the addresses in the file that AMX_SITES names
// ("37a059 cpuid" and "47d7b7 syscall", as with_tiles.sh finds them). They become invalid instructions, as tile instructions
// are on such a processor, and a signal's handler executes both. With AMX_FP16 set the processor reports tiles of f16, too.
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, BYTES = 64, SITES = 1024, ARCH_PRCTL = 158, ARCH_REQ_XCOMP_PERM = 0x1023 };
enum { NONE = 0, X66 = 1, XF3 = 2, XF2 = 3 };

typedef struct { uint8_t row[ROWS][BYTES]; } Tile;
static __thread Tile tiles[TILES];
static __thread int configured;

static struct { uintptr_t at; int asks_linux; } sites[SITES];
static int count, has_f16;
static struct { long products, loads, stores; } executed;

static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void fail(const char *what) {
  fprintf(stderr, "AMX stand-in: %s\n", what);
  abort();
}

// The even or the odd values of a row of pairs, as f32.
static __m512 wide(__m512i pairs, int odd, int f16) {
  if (f16) return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(odd ? _mm512_srli_epi32(pairs, 16) : pairs));
  if (odd) return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

// TDPBF16PS and TDPFP16PS, in the order of Intel's manual: even and odd products are summed apart.
static void dot_products(Tile *to, const Tile *a, const Tile *b, int f16) {
  const unsigned before = _mm_getcsr();
  // To the nearest, no exceptions; of bf16, what is subnormal counts as zero.
  _mm_setcsr(f16 ? 0x1f80 : 0x1f80 | 0x8040);
  for (int m = 0; m < ROWS; m++) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < BYTES / 4; k++) {
      int pair;
      memcpy(&pair, &a->row[m][4 * k], 4);
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_loadu_si512(b->row[k]);
      even = _mm512_fmadd_ps(wide(left, 0, f16), wide(right, 0, f16), even);
      odd = _mm512_fmadd_ps(wide(left, 1, f16), wide(right, 1, f16), odd);
    }
    _mm512_storeu_ps(to->row[m], _mm512_add_ps(_mm512_loadu_ps(to->row[m]), _mm512_add_ps(even, odd)));
  }
  _mm_setcsr(before);
}

// Executes the tile instruction at the program counter. 0 where there is none.
static int execute(greg_t *r) {
  const uint8_t *p = (const uint8_t *)r[REG_RIP];
  // A VEX prefix of three bytes, of map 0F38, 128 bits and W0.
  if (p[0] != 0xc4 || (p[1] & 0x1f) != 2 || (p[2] & 0x84)) return 0;
  const int index_high = !(p[1] & 0x40) << 3, base_high = !(p[1] & 0x20) << 3;
  const int third = (~p[2] >> 3) & 15, prefix = p[2] & 3, operation = p[3];
  const int mode = p[4] >> 6, first = (p[4] >> 3) & 7, second = p[4] & 7, in_memory = mode != 3;
  if (operation != 0x49 && operation != 0x4b && operation != 0x5c) return 0;

  const uint8_t *next = p + 5;
  uintptr_t address = 0, stride = 0;
  if (in_memory) {
    int base = second, relative = 0;
    if (second == 4) {
      const int sib = *next++, index = ((sib >> 3) & 7) | index_high;
      if (index != 4) stride = (uintptr_t)r[registers[index]] << (sib >> 6);
      base = sib & 7;
      if (base == 5 && mode == 0) fail("an address without a base");
    } else if (second == 5 && mode == 0) {
      relative = 1;
    }
    int32_t offset = 0;
    if (mode == 1) {
      offset = (int8_t)*next++;
    } else if (mode == 2 || relative) {
      memcpy(&offset, next, 4);
      next += 4;
    }
    address = offset + (relative ? (uintptr_t)next : (uintptr_t)r[registers[base | base_high]]);
  }

  if (operation == 0x49 && in_memory && prefix == NONE) { // LDTILECFG
    const uint8_t *wanted = (const uint8_t *)address;
    for (int tile = 0; tile < TILES; tile++)
      if (wanted[16 + 2 * tile] != BYTES || wanted[48 + tile] != ROWS) fail("only tiles of 16 rows of 64 bytes are known");
    memset(tiles, 0, sizeof tiles);
    configured = 1;
  } else if (operation == 0x49 && p[4] == 0xc0 && prefix == NONE) { // TILERELEASE
    configured = 0;
  } else if (!configured) {
    fail("tiles are used without their configuration");
  } else if (operation == 0x49 && !in_memory && prefix == XF2) { // TILEZERO
    memset(&tiles[first], 0, sizeof(Tile));
  } else if (operation == 0x4b && in_memory && (prefix == XF2 || prefix == X66)) { // TILELOADD, TILELOADDT1
    for (int row = 0; row < ROWS; row++) memcpy(tiles[first].row[row], (void *)(address + row * stride), BYTES);
    __atomic_add_fetch(&executed.loads, 1, __ATOMIC_RELAXED);
  } else if (operation == 0x4b && in_memory && prefix == XF3) { // TILESTORED
    for (int row = 0; row < ROWS; row++) memcpy((void *)(address + row * stride), tiles[first].row[row], BYTES);
    __atomic_add_fetch(&executed.stores, 1, __ATOMIC_RELAXED);
  } else if (operation == 0x5c && !in_memory && (prefix == XF3 || (prefix == XF2 && has_f16))) { // TDPBF16PS, TDPFP16PS
    dot_products(&tiles[first], &tiles[second], &tiles[third], prefix == XF2);
    __atomic_add_fetch(&executed.products, 1, __ATOMIC_RELAXED);
  } else {
    return 0;
  }
  r[REG_RIP] = (greg_t)next;
  return 1;
}

static void invalid(int signal_number, siginfo_t *info, void *context) {
  (void)info;
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  int done = 0;
  while (execute(r)) done = 1;
  if (done) return;
  for (int i = 0; i < count; i++) {
    if (sites[i].at != (uintptr_t)r[REG_RIP]) continue;
    if (sites[i].asks_linux) {
      if (r[REG_RAX] != ARCH_PRCTL || r[REG_RDI] != ARCH_REQ_XCOMP_PERM) fail("another system call than the one for tiles");
      r[REG_RAX] = 0;
    } else {
      const unsigned leaf = r[REG_RAX], part = r[REG_RCX];
      unsigned a, b, c, d;
      __cpuid_count(leaf, part, a, b, c, d);
      if (leaf == 7 && part == 0) {
        // AMX-BF16 and AMX-TILE, and that there is a part 1.
        d |= 1 << 22 | 1 << 24;
        a = a ? a : 1;
      } else if (leaf == 7 && part == 1 && has_f16) {
        a |= 1 << 21;
      }
      r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
    }
    r[REG_RIP] += 2;
    return;
  }
  // Invalid without this library, too.
  signal(signal_number, SIG_DFL);
}

// The program itself comes first.
static int load_address(struct dl_phdr_info *info, size_t size, void *address) {
  (void)size;
  *(uintptr_t *)address = info->dlpi_addr;
  return 1;
}

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("AMX_SITES");
  FILE *file = path ? fopen(path, "r") : NULL;
  if (!file) fail("AMX_SITES names no file that can be read");
  // What this program starts is another one, at other addresses.
  unsetenv("LD_PRELOAD");
  has_f16 = getenv("AMX_FP16") != NULL;
  uintptr_t base = 0;
  dl_iterate_phdr(load_address, &base);
  unsigned long at;
  char kind[16];
  while (fscanf(file, "%lx %15s", &at, kind) == 2) {
    uint8_t *code = (uint8_t *)(base + at);
    const int asks_linux = strcmp(kind, "syscall") == 0;
    if (count == SITES) fail("too many places");
    if (code[0] != 0x0f || code[1] != (asks_linux ? 0x05 : 0xa2)) fail("AMX_SITES is of another program");
    mprotect((void *)((uintptr_t)code & ~4095ul), 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[1] = 0x0b; // UD2
    sites[count].at = (uintptr_t)code;
    sites[count++].asks_linux = asks_linux;
  }
  fclose(file);
  struct sigaction action = {.sa_sigaction = invalid, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
}

__attribute__((destructor)) static void say(void) {
  fprintf(stderr, "AMX stand-in: %ld products of tiles, %ld loads, %ld stores\n", executed.products, executed.loads, executed.stores);
}
