/* SPDX-License-Identifier: MIT */
/*
 * Walking a path: path_resolution(7), one atomic step per component, no locks.
 *
 * A step from directory (cell, generation) to a name is keyed by the directory's number, so a
 * positive name found proves that the directory was alive then.  A miss in a directory that died
 * meanwhile is ENOENT either way.
 */
#ifndef SHMLOCK_WALK_H
#define SHMLOCK_WALK_H

#include "inode.h"

#define WALK_PATH_MAX 4095u

enum walk_last {
	WALK_NORM,   /* a name */
	WALK_ROOT,   /* nothing but slashes */
	WALK_DOT,    /* "." */
	WALK_DOTDOT, /* ".." */
};

/* All of a path but its last component. */
struct walk {
	struct dir dir;       /* where the last component is to be looked up */
	enum walk_last last;
	bool slash;           /* something like "name/" */
	struct name name;     /* the last component */
};

/* 0, or -ENOENT -ENOTDIR -ENAMETOOLONG -EUCLEAN. */
int walk_parent(struct shmlock_arena *arena, const char *path, struct walk *walk);

/* What a whole path leads to. */
struct walk_target {
	uint32_t inode;
	uint64_t ino;
	uint32_t name; /* the name's cell, 0 for the root */
};
int walk_to(struct shmlock_arena *arena, const char *path, struct walk_target *target);

/* The parent of a directory ("..", physical): the root's is the root. -ENOENT: it is gone. */
int walk_up(struct shmlock_arena *arena, struct dir *dir);

/* Path of a name's cell (the root's inode: "/") as of now: its length, -ENOENT, -ERANGE, -EUCLEAN. */
int walk_path_of(struct shmlock_arena *arena, uint32_t cell, char *buf, size_t size);

static inline struct dir walk_root(struct shmlock_arena *arena)
{
	return (struct dir){ SHM_ROOT, inode_ino(arena, SHM_ROOT) };
}

#endif
