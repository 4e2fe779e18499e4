/* SPDX-License-Identifier: MIT */
#include "arena.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "debug.h"

/* Where glibc keeps the futex word of a mutex; recovery watches it. attach compares. */
#define MUTEX_WORD 0u

struct plan {
	uint32_t buckets, cells;
	uint64_t slots, bucket_table, cell_table, debug, length;
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

void arena_limits(struct shmlock_limits *out)
{
	*out = (struct shmlock_limits){
		.min_dentries = SHM_MIN_DENTRIES,
		.max_dentries = SHM_MAX_DENTRIES,
		.min_tasks = 1,
		.max_tasks = SHM_MAX_TASKS,
		.layout_version = SHM_LAYOUT_VERSION,
		.debug_build = SHMLOCK_DEBUG_BUILD,
		.header_size = sizeof(struct shm_header),
		.slot_size = sizeof(struct shm_slot),
		.cell_size = sizeof(struct shm_cell),
		.mutex_size = sizeof(pthread_mutex_t),
		.names_per_task = SHM_NAMES,
		.name_max = SHM_NAME_MAX,
		.path_max = 4095,
	};
}

static int make_plan(const struct shmlock_params *params, struct plan *plan)
{
	uint64_t buckets = SHM_MIN_BUCKETS;

	if (params->dentries < SHM_MIN_DENTRIES || params->dentries > SHM_MAX_DENTRIES ||
	    params->tasks < 1 || params->tasks > SHM_MAX_TASKS || params->locking > SHMLOCK_BOTH)
		return -EINVAL;
	while (buckets < (uint64_t)params->dentries * SHM_BUCKETS_PER_DENTRY)
		buckets *= 2;
	plan->buckets = (uint32_t)buckets;
	plan->cells = params->dentries + 2; /* index 0 is none, 1 the root's inode */
	plan->slots = round_up(sizeof(struct shm_header), 4096);
	plan->bucket_table =
		round_up(plan->slots + (uint64_t)params->tasks * sizeof(struct shm_slot), 4096);
	plan->cell_table = plan->bucket_table + buckets * sizeof(shm_word64);
	plan->debug = round_up(plan->cell_table + (uint64_t)plan->cells * sizeof(struct shm_cell),
			       4096);
	plan->length = plan->debug + 4096;
	return 0;
}

_Static_assert(sizeof(struct shm_debug) <= 4096, "the debug page is one page");

int64_t arena_size(const struct shmlock_params *params)
{
	struct plan plan;
	int ret = make_plan(params, &plan);

	return ret ? ret : (int64_t)plan.length;
}

static void pid_namespace(uint64_t *dev, uint64_t *ino)
{
	struct stat st = { 0 };

	if (stat("/proc/self/ns/pid", &st)) /* no /proc: all such processes look alike */
		memset(&st, 0, sizeof(st));
	*dev = st.st_dev;
	*ino = st.st_ino;
}

static int format_slot(struct shm_slot *slot)
{
	pthread_mutexattr_t attr;
	int ret;

	pthread_mutexattr_init(&attr);
	ret = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	if (!ret)
		ret = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	if (!ret)
		ret = pthread_mutex_init(&slot->live, &attr);
	pthread_mutexattr_destroy(&attr);
	return -ret;
}

static void fill_header(struct shm_header *header, const struct shmlock_params *params,
			const struct plan *plan)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	header->layout_version = SHM_LAYOUT_VERSION;
	header->build = SHMLOCK_DEBUG_BUILD;
	header->header_size = sizeof(struct shm_header);
	header->slot_size = sizeof(struct shm_slot);
	header->cell_size = sizeof(struct shm_cell);
	header->mutex_size = sizeof(pthread_mutex_t);
	header->mutex_word = MUTEX_WORD;
	header->pointer_bits = 8 * sizeof(void *);
	header->locking = params->locking;
	header->dentries = params->dentries;
	header->tasks = params->tasks;
	header->buckets = plan->buckets;
	header->length = plan->length;
	header->slots_offset = plan->slots;
	header->buckets_offset = plan->bucket_table;
	header->cells_offset = plan->cell_table;
	header->debug_offset = plan->debug;
	if (getrandom(header->hash_secret, sizeof(header->hash_secret), 0) < 0)
		header->hash_secret[0] = (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15ull;
	header->hash_secret[0] |= 1;
	header->hash_secret[1] |= 1;
	pid_namespace(&header->pidns_dev, &header->pidns_ino);
	header->created = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	header->magic = SHM_MAGIC;
}

int arena_format(int fd, const struct shmlock_params *params)
{
	struct plan plan;
	struct stat st;
	unsigned char *base;
	struct shm_slot *slots;
	struct shm_cell *root;
	int ret = make_plan(params, &plan);

	if (ret)
		return ret;
	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size != plan.length)
		return -EINVAL;
	base = mmap(NULL, plan.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	slots = (struct shm_slot *)(base + plan.slots);
	for (uint32_t i = 0; i < params->tasks && !ret; i++)
		ret = format_slot(&slots[i]);
	/* All else starts as zeros: free cells, empty buckets. The root has no name. */
	root = &((struct shm_cell *)(base + plan.cell_table))[SHM_ROOT];
	atomic_store(&root->d_flags, SHM_INODE);
	atomic_store(&root->i_nlink, 1);
	atomic_store(&root->i_id, S_IFDIR | 0777);
	atomic_store(&((struct shm_header *)base)->hand, 2);
	fill_header((struct shm_header *)base, params, &plan);
	munmap(base, plan.length);
	return ret;
}

static void copy_info(const struct shm_header *header, struct shmlock_info *out)
{
	uint32_t state = atomic_load_explicit(&header->state, memory_order_relaxed);

	*out = (struct shmlock_info){
		.magic = header->magic,
		.layout_version = header->layout_version,
		.debug_build = header->build,
		.header_size = header->header_size,
		.slot_size = header->slot_size,
		.cell_size = header->cell_size,
		.mutex_size = header->mutex_size,
		.mutex_word = header->mutex_word,
		.pointer_bits = header->pointer_bits,
		.locking = header->locking,
		.dentries = header->dentries,
		.tasks = header->tasks,
		.buckets = header->buckets,
		.length = header->length,
		.pidns_dev = header->pidns_dev,
		.pidns_ino = header->pidns_ino,
		.created = header->created,
		.unlinked = state & SHM_STATE_UNLINKED ? 1 : 0,
		.poisoned = state & SHM_STATE_POISONED ? 1 : 0,
	};
}

static int read_header(int fd, struct shm_header *header)
{
	ssize_t n = pread(fd, header, sizeof(*header), 0);

	if (n < 0)
		return -errno;
	return n == sizeof(*header) && header->magic == SHM_MAGIC ? 0 : -EUCLEAN;
}

int arena_probe(int fd, struct shmlock_info *out)
{
	struct shm_header header;
	int ret;

	memset(&header, 0, sizeof(header));
	ret = read_header(fd, &header);
	copy_info(&header, out);
	return ret;
}

void arena_expect(struct shmlock_info *out)
{
	memset(out, 0, sizeof(*out));
	out->magic = SHM_MAGIC;
	out->layout_version = SHM_LAYOUT_VERSION;
	out->debug_build = SHMLOCK_DEBUG_BUILD;
	out->header_size = sizeof(struct shm_header);
	out->slot_size = sizeof(struct shm_slot);
	out->cell_size = sizeof(struct shm_cell);
	out->mutex_size = sizeof(pthread_mutex_t);
	out->mutex_word = MUTEX_WORD;
	out->pointer_bits = 8 * sizeof(void *);
	pid_namespace(&out->pidns_dev, &out->pidns_ino);
}

void arena_info(struct shmlock_arena *arena, struct shmlock_info *out)
{
	copy_info(arena->header, out);
}

/* Every offset follows from the three sizes, so only those and the length can be wrong. */
static int check_header(const struct shm_header *header, uint64_t length, struct plan *plan)
{
	struct shmlock_params params = { header->dentries, header->tasks, header->locking };
	struct shmlock_info expect;

	arena_expect(&expect);
	if (header->layout_version != expect.layout_version ||
	    header->build != expect.debug_build || header->header_size != expect.header_size ||
	    header->slot_size != expect.slot_size || header->cell_size != expect.cell_size ||
	    header->mutex_size != expect.mutex_size || header->mutex_word != expect.mutex_word ||
	    header->pointer_bits != expect.pointer_bits ||
	    header->pidns_dev != expect.pidns_dev || header->pidns_ino != expect.pidns_ino)
		return -EUCLEAN;
	if (make_plan(&params, plan) || plan->length != length || header->length != length ||
	    header->buckets != plan->buckets || header->slots_offset != plan->slots ||
	    header->buckets_offset != plan->bucket_table ||
	    header->cells_offset != plan->cell_table || header->debug_offset != plan->debug)
		return -EUCLEAN;
	return 0;
}

static uint32_t clamp(uint32_t n, uint32_t low, uint32_t high)
{
	return n < low ? low : n > high ? high : n;
}

int arena_map(int fd, bool readonly, struct shmlock_arena **out)
{
	struct shmlock_arena *arena;
	struct shm_header header;
	struct plan plan;
	struct stat st;
	int ret;

	if (fstat(fd, &st))
		return -errno;
	ret = read_header(fd, &header);
	if (!ret)
		ret = check_header(&header, (uint64_t)st.st_size, &plan);
	if (ret)
		return ret;
	arena = calloc(1, sizeof(*arena));
	if (!arena)
		return -ENOMEM;
	arena->base = mmap(NULL, plan.length, readonly ? PROT_READ : PROT_READ | PROT_WRITE,
			   MAP_SHARED, fd, 0);
	if (arena->base == MAP_FAILED) {
		ret = -errno;
		free(arena);
		return ret;
	}
	arena->length = plan.length;
	arena->header = (struct shm_header *)arena->base;
	arena->slots = (struct shm_slot *)(arena->base + plan.slots);
	arena->buckets = (shm_word64 *)(arena->base + plan.bucket_table);
	arena->cells = (struct shm_cell *)(arena->base + plan.cell_table);
	arena->debug = SHMLOCK_DEBUG_BUILD ? (struct shm_debug *)(arena->base + plan.debug) : NULL;
	arena->hash_secret[0] = header.hash_secret[0];
	arena->hash_secret[1] = header.hash_secret[1];
	arena->dentries = header.dentries;
	arena->cells_end = plan.cells;
	arena->tasks = header.tasks;
	arena->bucket_mask = plan.buckets - 1;
	arena->locking = header.locking;
	/* All tasks' stocks together keep a quarter of the cells at most (or one each). */
	arena->stock_max = clamp(header.dentries / 4 / header.tasks, 1,
				 clamp(header.dentries / 128, 1, SHM_STOCK_MAX));
	arena->ring_max = clamp(header.dentries / 16, 4, SHM_RING_MAX);
	arena->readonly = readonly;
	arena->fd = fd;
	arena->dev = st.st_dev;
	arena->ino = st.st_ino;
	*out = arena;
	return 0;
}

void arena_unmap(struct shmlock_arena *arena)
{
	munmap(arena->base, arena->length);
	arena->base = NULL;
	close(arena->fd);
	arena->fd = -1;
}

int arena_state_slow(struct shmlock_arena *arena)
{
	uint32_t state = atomic_load_explicit(&arena->header->state, memory_order_relaxed);

	if (state & SHM_STATE_POISONED)
		return -ENOTRECOVERABLE;
	return state & SHM_STATE_UNLINKED ? -ESTALE : 0;
}

int arena_mark_unlinked(struct shmlock_arena *arena)
{
	if (arena->readonly)
		return -EROFS;
	atomic_fetch_or(&arena->header->state, SHM_STATE_UNLINKED);
	return 0;
}

int arena_set_latency(struct shmlock_arena *arena, uint64_t sleep_ns, uint64_t spin_ns)
{
	if (arena->readonly)
		return -EROFS;
	if (sleep_ns > ARENA_LATENCY_MAX || spin_ns > ARENA_LATENCY_MAX)
		return -EINVAL;
	atomic_store(&arena->header->latency_sleep, sleep_ns);
	atomic_store(&arena->header->latency_spin, spin_ns);
	return 0;
}
