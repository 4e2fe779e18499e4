/* SPDX-License-Identifier: MIT */
/*
 * An arena as this process sees it: where it is mapped, and the facts of its header, copied and
 * checked once, so that a scribbled header cannot move anything afterwards.  Indices are turned
 * into pointers here and nowhere else.
 */
#ifndef SHMLOCK_ARENA_H
#define SHMLOCK_ARENA_H

/* Longer would look like a hang. */
#define ARENA_LATENCY_MAX 10000000000ull

#include <errno.h>
#include <stdbool.h>
#include <sys/types.h>

#include "layout.h"
#include "shmlock.h"

#if !defined(__linux__) || __SIZEOF_POINTER__ != 8 || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shmlock needs 64-bit little-endian Linux"
#endif

/* Kept out of line, away from the code that runs when nothing is contended. */
#define COLD __attribute__((noinline, cold))

struct task;

struct shmlock_arena {
	/* R/o once attached. */
	unsigned char *base;
	uint64_t length;
	struct shm_header *header;
	struct shm_slot *slots; /* slot of task n is slots[n - 1] */
	shm_word64 *buckets;
	struct shm_cell *cells;
	struct shm_debug *debug; /* NULL in release */
	uint64_t hash_secret[2];
	uint32_t dentries, cells_end; /* valid cells: 1 <= index < cells_end */
	uint32_t tasks, bucket_mask, locking;
	uint32_t stock_max, ring_max; /* smaller in small arenas */
	uint32_t readonly;
	int fd;
	dev_t dev;
	ino_t ino;

	/* Guard: the process's attachment mutex (task.c). */
	shm_word handles; /* shmlock_attach() less shmlock_close(); read without the guard */
	uint32_t attached; /* threads of this process with a slot */
	shm_word pins;     /* calls in progress by threads without one: the mapping stays for them */
	struct shmlock_arena *next;
};

static inline bool cell_valid(const struct shmlock_arena *arena, uint32_t cell)
{
	return cell != SHM_NONE && cell < arena->cells_end;
}

/* Requires: cell_valid(). */
static inline struct shm_cell *cell_at(const struct shmlock_arena *arena, uint32_t cell)
{
	return &arena->cells[cell];
}

static inline bool task_valid(const struct shmlock_arena *arena, uint32_t id)
{
	return id != 0 && id <= arena->tasks;
}

/* Requires: task_valid(). */
static inline struct shm_slot *slot_at(const struct shmlock_arena *arena, uint32_t id)
{
	return &arena->slots[id - 1];
}

static inline uint32_t ino_cell(uint64_t ino)
{
	return (uint32_t)ino;
}

/* The inode's number: the generation of its i_id, and its cell. */
static inline uint64_t inode_number(uint64_t id, uint32_t cell)
{
	return (id & ~0xffffffffull) | cell;
}

/* Offset of a word in the arena: how a word is named in shared memory. */
static inline uint64_t word_offset(const struct shmlock_arena *arena, const shm_word *word)
{
	return (uint64_t)((const unsigned char *)word - arena->base);
}

/* The word at an offset, NULL when there cannot be one. */
static inline shm_word *word_at(const struct shmlock_arena *arena, uint64_t offset)
{
	if (offset % sizeof(shm_word) || offset > arena->length - sizeof(shm_word))
		return NULL;
	return (shm_word *)(arena->base + offset);
}

void arena_limits(struct shmlock_limits *out);
int64_t arena_size(const struct shmlock_params *params);
int arena_format(int fd, const struct shmlock_params *params);
int arena_probe(int fd, struct shmlock_info *out);
void arena_expect(struct shmlock_info *out);
void arena_info(struct shmlock_arena *arena, struct shmlock_info *out);
/* Map the object behind fd, which the new arena owns from then on. -EUCLEAN: not ours. */
int arena_map(int fd, bool readonly, struct shmlock_arena **out);
/* Requires: no thread is attached. Frees the mapping, keeps the struct (it may be pointed to). */
void arena_unmap(struct shmlock_arena *arena);

/* -EROFS when attached read-only. */
int arena_mark_unlinked(struct shmlock_arena *arena);
/* Over ten seconds of either: -EINVAL. */
int arena_set_latency(struct shmlock_arena *arena, uint64_t sleep_ns, uint64_t spin_ns);

/* New locks are refused in an unlinked or poisoned arena: 0, -ESTALE or -ENOTRECOVERABLE. */
int arena_state_slow(struct shmlock_arena *arena);
static inline int arena_state(struct shmlock_arena *arena)
{
	if (__builtin_expect(
		    !atomic_load_explicit(&arena->header->state, memory_order_relaxed), 1))
		return 0;
	return arena_state_slow(arena);
}

#endif
