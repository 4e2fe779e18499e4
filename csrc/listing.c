/* SPDX-License-Identifier: MIT */
#include "listing.h"

#include "dirblock.h"

/* Begun again so often, an answer never comes: the words are a lie. */
#define TRIES 20000u

int listing_stat(struct shmlock_arena *arena, const char *path, struct shmlock_stat *out)
{
	struct walk_target target;
	struct shm_cell *i;
	uint64_t id;
	int ret;

	for (uint32_t tries = 0; tries < TRIES; tries++) {
		ret = walk_to(arena, path, &target);
		if (ret)
			return ret;
		i = cell_at(arena, target.inode);
		id = atomic_load_explicit(&i->i_id, memory_order_acquire);
		out->st_ino = target.ino;
		out->st_mode = (uint32_t)id;
		out->st_nlink = atomic_load_explicit(&i->i_nlink, memory_order_acquire);
		out->st_size = atomic_load_explicit(&i->i_size, memory_order_acquire);
		/* Again at the end: then all of it was this inode's. */
		if (inode_number(id, target.inode) == target.ino && out->st_mode &&
		    atomic_load_explicit(&i->i_id, memory_order_acquire) == id)
			return 0;
	}
	return -EUCLEAN;
}

/* One entry, if it is a live name of the directory, as one. Its bytes; 0: none. */
static size_t read_entry(struct shmlock_arena *arena, uint64_t dir, uint32_t cell, char *out)
{
	struct shm_cell *c = cell_at(arena, cell);
	uint32_t seq, inode, mode, length;
	uint64_t ino;

	for (int tries = 0; tries < (int)TRIES; tries++) {
		seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);
		if (atomic_load_explicit(&c->d_parent, memory_order_acquire) != dir)
			return 0;
		inode = atomic_load_explicit(&c->d_inode, memory_order_acquire);
		/* In the making or on its way out, and empty either way.  (Not so once rename
		 * moves pointers: then odd will mean, read again.) */
		if (seq & 1)
			return 0;
		if (!inode && atomic_load_explicit(&c->d_seq, memory_order_acquire) == seq)
			return 0;
		if (!cell_valid(arena, inode))
			continue;
		length = name_read(arena, c, out + 13);
		ino = inode_ino(arena, inode);
		mode = inode_mode(arena, inode);
		if (!length || !mode || !inode_is(arena, ino) ||
		    atomic_load_explicit(&c->d_inode, memory_order_acquire) != inode ||
		    atomic_load_explicit(&c->d_seq, memory_order_acquire) != seq)
			continue;
		memcpy(out, &ino, 8);
		memcpy(out + 8, &mode, 4);
		out[12] = (char)length;
		return 13 + length;
	}
	return SIZE_MAX; /* its words are a lie */
}

static int64_t list_once(struct shmlock_arena *arena, const char *path, char *buf, size_t size)
{
	struct walk_target target;
	struct dir_walk walk;
	char entry[13 + SHM_NAME_MAX];
	size_t at = 0, length;
	struct dir dir;
	int ret = walk_to(arena, path, &target);

	if (ret)
		return ret;
	if (!S_ISDIR(inode_mode(arena, target.inode)))
		return inode_is(arena, target.ino) ? -ENOTDIR : -ESTALE;
	dir = (struct dir){ target.inode, target.ino };
	dirblock_first(arena, &dir, &walk);
	while ((ret = dirblock_next(&walk)) > 0) {
		length = read_entry(arena, dir.ino, walk.name, entry);
		if (length == SIZE_MAX)
			return -EUCLEAN;
		if (length && at + length <= size)
			memcpy(buf + at, entry, length);
		at += length;
	}
	if (ret != -ESTALE && ret)
		return ret;
	if (!inode_is(arena, dir.ino))
		return -ESTALE;
	/* A living directory's list has only its own blocks. */
	return ret ? -EUCLEAN : (int64_t)at;
}

int64_t listing_dir(struct shmlock_arena *arena, const char *path, char *buf, size_t size)
{
	int64_t ret;

	/* Removed while we read: ask the path again, it leads elsewhere or nowhere now. */
	do
		ret = list_once(arena, path, buf, size);
	while (ret == -ESTALE);
	return ret;
}
