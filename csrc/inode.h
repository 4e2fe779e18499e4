/* SPDX-License-Identifier: MIT */
/*
 * Inodes: made for a name, freed with the last one.
 *
 * Guard: a free inode is claimed by the owner of its own cell's LOCK; a live one is freed by the
 * owner of the LOCK of the only name that points to it.
 */
#ifndef SHMLOCK_INODE_H
#define SHMLOCK_INODE_H

#include <sys/stat.h>

#include "dcache.h"

static inline uint64_t inode_ino(struct shmlock_arena *arena, uint32_t inode)
{
	return inode_number(atomic_load_explicit(&cell_at(arena, inode)->i_id, memory_order_acquire),
			    inode);
}

static inline bool inode_is(struct shmlock_arena *arena, uint64_t ino)
{
	return cell_valid(arena, ino_cell(ino)) && inode_ino(arena, ino_cell(ino)) == ino;
}

static inline uint32_t inode_mode(struct shmlock_arena *arena, uint32_t inode)
{
	return (uint32_t)atomic_load_explicit(&cell_at(arena, inode)->i_id, memory_order_acquire);
}

/* Fill in a free inode for the name. Requires: the name's LOCK, and the redo record is written. */
static inline void inode_make(struct shmlock_arena *arena, uint32_t inode, uint32_t name,
			      uint32_t mode)
{
	struct shm_cell *i = cell_at(arena, inode);
	uint64_t gen = atomic_load_explicit(&i->i_id, memory_order_relaxed) >> 32;

	atomic_store_explicit(&i->i_flags, 0, memory_order_relaxed);
	atomic_store_explicit(&i->i_nlink, 1, memory_order_relaxed);
	atomic_store_explicit(&i->i_dentry, S_ISDIR(mode) ? name : 0, memory_order_relaxed);
	atomic_store_explicit(&i->i_children, gen << 32, memory_order_relaxed);
	atomic_store_explicit(&i->i_size, 0, memory_order_relaxed);
	atomic_store_explicit(&i->i_id, gen << 32 | mode, memory_order_release);
}

/* Free the inode, unless that was done already (another generation). Readers see it by i_id. */
static inline void inode_free(struct shmlock_arena *arena, uint64_t ino)
{
	struct shm_cell *i = cell_at(arena, ino_cell(ino));

	if (!inode_is(arena, ino))
		return;
	atomic_store_explicit(&i->i_nlink, 0, memory_order_relaxed);
	/* Next generation and no mode in one store: its number dies as its cell becomes free.
	 * A release is enough: who must not miss a directory's death sees S_DEAD (D1). */
	atomic_store_explicit(&i->i_id, ((ino >> 32) + 1) << 32, memory_order_release);
}

#endif
