/* dirty: fills memory with pages that look like a program's, changes them at a set rate and checks
 * them for ever. Called by init.sh as
 *
 *   dirty MIB RATE MODE [SEED]
 *
 * RATE  updates of a page per second; negative: as many as possible
 * MODE  0 none, 1 records (a few small fields of a page), 2 text (whole pages), 3 mixed: of 100
 *       updates 80 records, 15 text, 5 random bytes; 4 collapse: pages that are nearly empty, of
 *       which records change, until a line comes in over the second serial line: from then on
 *       random bytes, at once in the whole of the hottest tenth
 *
 * Nine of ten updates hit the hottest tenth of the pages. Each page holds its number, its
 * generation and a checksum; a table elsewhere in memory holds the generation of every page too,
 * so that a page that is whole but old is found as well as a torn one.
 *
 * On the console: "FILLED n MiB" when all pages are written, "TICK seconds updates" each second,
 * every fifth second "VERIFY all n pages bad=m", and "BAD page n" as soon as one is found. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
  PAGE_BYTES = 4096,
  BODY_BYTES = PAGE_BYTES - 32,
  RECORD_BYTES = 32,
  RECORDS = BODY_BYTES / RECORD_BYTES,
  PAGES_PER_MIB = 256,
  VERIFY_TICKS = 5,
  BATCH = 64,         /* updates between two looks at the clock */
  SPARSE_RECORDS = 4, /* of a page that is nearly empty */
};
enum mode { NONE, RECORD, TEXT, MIXED, COLLAPSE, RANDOM };

static const uint64_t MAGIC = 0x6477637064697274;

struct page {
  uint64_t magic, number, generation, checksum;
  unsigned char body[BODY_BYTES];
};
_Static_assert(sizeof(struct page) == PAGE_BYTES, "a page is a page");

static struct page *pages;
static uint32_t *generations;
static size_t page_count;
static uint64_t bad_count;
static uint64_t random_state;

static uint64_t random_word(void) { /* splitmix64 */
  uint64_t z = random_state += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

static uint64_t below(uint64_t bound) { return random_word() % bound; }

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t checksum(const struct page *page) {
  uint64_t sum = page->generation * 0x100000001B3ull + page->number;
  for (size_t at = 0; at < BODY_BYTES; at += sizeof sum) {
    uint64_t word;
    memcpy(&word, page->body + at, sizeof word);
    sum = (sum ^ word) * 0x9E3779B97F4A7C15ull;
    sum ^= sum >> 29;
  }
  return sum;
}

static void check(size_t number) {
  const struct page *page = pages + number;
  bool is_good = page->magic == MAGIC && page->number == number &&
                 page->generation == generations[number] && page->checksum == checksum(page);
  if (is_good) return;
  bad_count++;
  printf("BAD page %zu generation %llu, not %u\n", number, (unsigned long long)page->generation,
         (unsigned)generations[number]);
}

static void write_record(struct page *page, uint64_t slot) {
  /* An identity, something like a pointer, a counter, a time. */
  uint64_t record[RECORD_BYTES / 8] = {page->number * RECORDS + slot,
                                       0x7F3A00000000ull + (below(100000) << 4), below(5000),
                                       1700000000ull + below(100000)};
  memcpy(page->body + slot * RECORD_BYTES, record, RECORD_BYTES);
}

static void write_text(struct page *page) {
  static const char *const WORDS[] = {
      "GET ",    "POST ",  "/api/v1/orders ", "/index.html ", "200 ",      "404 ",     "error ",
      "timeout ", "user ", "session ",        "order ",       "customer ", "amount ",  "EUR ",
      "the ",    "and ",   "of ",             "request ",     "complete ", "in ",      "ms ",
      "cache ",  "INFO ",  "WARN ",           "worker ",      "thread ",   "payload ", "stock\n"};
  for (size_t at = 0; at < BODY_BYTES;) {
    char number[16];
    const char *word = WORDS[below(sizeof WORDS / sizeof *WORDS)];
    if (below(6) == 0) {
      snprintf(number, sizeof number, "%u ", (unsigned)below(1000000));
      word = number;
    }
    size_t length = strlen(word);
    if (length > BODY_BYTES - at) length = BODY_BYTES - at;
    memcpy(page->body + at, word, length);
    at += length;
  }
}

static void write_random(struct page *page) {
  for (size_t at = 0; at < BODY_BYTES; at += 8) {
    uint64_t word = random_word();
    memcpy(page->body + at, &word, sizeof word);
  }
}

static void fill(enum mode mode) {
  for (size_t number = 0; number < page_count; number++) {
    struct page *page = pages + number;
    page->magic = MAGIC, page->number = number;
    uint64_t kind = below(10);
    if (mode == COLLAPSE)
      for (uint64_t slot = 0; slot < SPARSE_RECORDS; slot++) write_record(page, slot);
    else if (kind < 6)
      for (uint64_t slot = 0; slot < RECORDS; slot++) write_record(page, slot);
    else if (kind < 9)
      write_text(page);
    else
      write_random(page);
    page->checksum = checksum(page);
  }
}

static size_t hot_count(void) { return page_count / 10 + 1; }

static void change(size_t number, enum mode mode) {
  struct page *page = pages + number;
  check(number);
  uint64_t kind = below(100);
  page->generation = ++generations[number];
  if (mode == COLLAPSE)
    write_record(page, below(SPARSE_RECORDS));
  else if (mode == RECORD || (mode == MIXED && kind < 80))
    for (uint64_t count = 2 + below(6); count > 0; count--) write_record(page, below(RECORDS));
  else if (mode == TEXT || (mode == MIXED && kind < 95))
    write_text(page);
  else
    write_random(page);
  page->checksum = checksum(page);
}

static void update(enum mode mode) {
  change(below(10) ? below(hot_count()) : below(page_count), mode);
}

/* Has a line come in? A guest without a second serial line is never told anything. */
static bool is_told(int line) {
  char byte;
  return line >= 0 && read(line, &byte, sizeof byte) > 0;
}

static void *memory(size_t bytes) {
  if (bytes == 0) return 0;
  void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at != MAP_FAILED) return at;
  puts("BUG: no memory for so many pages");
  exit(1);
}

int main(int count, char **words) {
  size_t mib = count > 1 ? strtoul(words[1], 0, 10) : 0;
  double rate = count > 2 ? atof(words[2]) : 0;
  enum mode mode = count > 3 ? (enum mode)atoi(words[3]) : NONE;
  random_state = count > 4 ? strtoull(words[4], 0, 10) : 1;
  setvbuf(stdout, 0, _IOLBF, 0);
  page_count = mib * PAGES_PER_MIB;
  if (page_count == 0) mode = NONE;
  pages = memory(page_count * PAGE_BYTES);
  generations = memory(page_count * sizeof *generations);
  fill(mode);
  printf("FILLED %zu MiB\n", mib);

  int line = mode == COLLAPSE ? open("/dev/ttyS1", O_RDONLY | O_NONBLOCK | O_NOCTTY) : -1;
  uint64_t done = 0, tick = 0;
  double start = now_s(), last = start;
  for (;;) {
    double now = now_s();
    if (mode == COLLAPSE && is_told(line)) {
      mode = RANDOM;
      for (size_t number = 0; number < hot_count(); number++) change(number, mode);
      puts("COLLAPSED");
    }
    double due = rate < 0 ? (double)done + BATCH : (now - start) * rate;
    if (mode != NONE && (double)done < due)
      for (int left = BATCH; left > 0 && (double)done < due; left--) update(mode), done++;
    else
      usleep(2000);
    if (now - last < 1) continue;
    last = now, tick++;
    printf("TICK %llu %llu\n", (unsigned long long)tick, (unsigned long long)done);
    if (tick % VERIFY_TICKS != 0) continue;
    for (size_t number = 0; number < page_count; number++) check(number);
    printf("VERIFY all %zu pages bad=%llu\n", page_count, (unsigned long long)bad_count);
  }
}
