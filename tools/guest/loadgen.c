/* loadgen: made-up data for the real workloads. The same words, the same output.
 *
 *   loadgen fill N SEED         N keys as redis takes them: of ten, six JSON documents, two hashes,
 *                               one list and one random token
 *   loadgen update N SEED MAX   N of the keys below MAX anew, nine of ten in the hottest tenth
 *   loadgen sql N SEED          N inserts in one transaction
 *   loadgen c N SEED            a C file with N functions */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES = 4096, TOKEN_BYTES = 256 };

static uint64_t random_state;

static uint64_t random_word(void) { /* splitmix64 */
  uint64_t z = random_state += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

static int below(int bound) { return (int)(random_word() % (uint64_t)bound); }

static const char *const NAMES[] = {"Anna", "Bernd", "Chloe", "David", "Eva",  "Farid", "Greta",
                                    "Hugo", "Ines",  "Jan",   "Kira",  "Lars", "Mia",   "Noah",
                                    "Olga", "Paul",  "Rosa",  "Sven",  "Tara", "Yusuf", "Zoe"};
static const char *const FAMILIES[] = {"Schmidt", "Meyer",  "Garcia",    "Rossi",  "Novak",
                                       "Dubois",  "Jansen", "Kowalski",  "Silva",  "Andersson",
                                       "Keller",  "Brown",  "Wilson",    "Petrov", "Tanaka"};
static const char *const CITIES[] = {"Berlin", "Paris", "Madrid", "Roma",   "Praha",  "Lisboa",
                                     "Wien",   "Oslo",  "Dublin", "Zagreb", "Athina", "Riga"};
static const char *const GOODS[] = {"keyboard", "monitor", "cable",   "router", "switch",
                                    "memory",   "battery", "charger", "camera", "printer",
                                    "adapter",  "bracket", "sensor",  "antenna"};
#define ANY(list) list[below((int)(sizeof list / sizeof *list))]

static int document(char *text, unsigned long id) {
  int n = sprintf(text,
                  "{\"id\":%lu,\"name\":\"%s %s\",\"email\":\"user%lu@example.org\","
                  "\"city\":\"%s\",\"balance\":%d.%02d,"
                  "\"last_login\":\"2025-%02d-%02dT%02d:%02d:%02dZ\",\"orders\":[",
                  id, ANY(NAMES), ANY(FAMILIES), id, ANY(CITIES), below(9000), below(100),
                  1 + below(12), 1 + below(28), below(24), below(60), below(60));
  int orders = 1 + below(6);
  for (int i = 0; i < orders; i++)
    n += sprintf(text + n, "%s{\"sku\":\"%s-%d\",\"qty\":%d,\"price\":%d.99,\"status\":\"%s\"}",
                 i ? "," : "", ANY(GOODS), below(5000), 1 + below(5), below(400),
                 below(3) ? "shipped" : "pending");
  return n + sprintf(text + n, "],\"tags\":[\"%s\",\"%s\"]}", ANY(GOODS), ANY(GOODS));
}

static void bulk(const void *bytes, int count) {
  printf("$%d\r\n", count);
  fwrite(bytes, 1, (size_t)count, stdout);
  fputs("\r\n", stdout);
}

static void words(int count, const char *command) {
  printf("*%d\r\n", count);
  bulk(command, (int)strlen(command));
}

static void key(unsigned long id) {
  char name[64], text[TEXT_BYTES];
  switch (id % 10) {
  case 6:
  case 7:
    words(8, "HSET");
    bulk(name, sprintf(name, "cart:%lu", id));
    bulk("item", 4);
    bulk(text, sprintf(text, "%s-%d", ANY(GOODS), below(5000)));
    bulk("qty", 3);
    bulk(text, sprintf(text, "%d", below(10)));
    bulk("address", 7);
    bulk(text, sprintf(text, "%s %s, %d %s", ANY(NAMES), ANY(FAMILIES), below(99999), ANY(CITIES)));
    break;
  case 8:
    words(3, "LPUSH");
    bulk(name, sprintf(name, "log:%lu", id));
    bulk(text, sprintf(text, "%s bought %s in %s", ANY(NAMES), ANY(GOODS), ANY(CITIES)));
    break;
  case 9:
    words(3, "SET");
    bulk(name, sprintf(name, "token:%lu", id));
    for (int at = 0; at < TOKEN_BYTES; at += 8) {
      uint64_t word = random_word();
      memcpy(text + at, &word, sizeof word);
    }
    bulk(text, TOKEN_BYTES);
    break;
  default:
    words(3, "SET");
    bulk(name, sprintf(name, "user:%lu", id));
    bulk(text, document(text, id));
  }
}

static void sql(unsigned long count) {
  puts("BEGIN;");
  for (; count > 0; count--) {
    char text[TEXT_BYTES];
    unsigned long id = (unsigned long)below(200000);
    document(text, id);
    printf("INSERT OR REPLACE INTO users VALUES(%lu,'%s %s','%s');\n", id, ANY(NAMES),
           ANY(FAMILIES), text);
  }
  puts("COMMIT;");
}

static void c_file(unsigned long count) {
  puts("#include <stdio.h>\nstruct node { int a; double b; char name[32]; struct node *next; };");
  for (unsigned long i = 0; i < count; i++) {
    printf("static int f%lu(struct node *p, int k) {\n  int r = 0;\n", i);
    printf("  for (int i = 0; i < k; i++) {\n    switch (i * %d %% 7) {\n", 1 + below(97));
    for (int j = 0; j < 6; j++)
      printf("    case %d: r += p->a * %d + (int)(p->b * %d.5); p->name[i %% 32] = '%c'; break;\n",
             j, below(1000), below(100), 'a' + below(26));
    printf("    default: r ^= i << %d;\n    }\n    if (p->next) p = p->next;\n  }\n", below(7));
    if (i == 0) printf("  return r;\n}\n");
    else printf("  return r + f%lu(p, k / 2);\n}\n", i - 1);
  }
  puts("int main(void) { struct node x = {1, 1.5, \"\", 0};");
  printf("  printf(\"%%d\\n\", f%lu(&x, 100)); }\n", count - 1);
}

int main(int count, char **arguments) {
  if (count < 4) return fputs("loadgen fill|update|sql|c N SEED [MAX]\n", stderr), 2;
  const char *what = arguments[1];
  unsigned long n = strtoul(arguments[2], 0, 10);
  random_state = strtoull(arguments[3], 0, 10) * 0x9E3779B97F4A7C15ull;
  if (strcmp(what, "fill") == 0)
    for (unsigned long id = 0; id < n; id++) key(id);
  else if (strcmp(what, "update") == 0 && count > 4)
    for (int max = atoi(arguments[4]); n > 0; n--) key((unsigned long)below(below(10) ? max / 10 : max));
  else if (strcmp(what, "sql") == 0)
    sql(n);
  else if (strcmp(what, "c") == 0)
    c_file(n);
  return 0;
}
