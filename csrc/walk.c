/* SPDX-License-Identifier: MIT */
#include "walk.h"

/* Directories above one another: more than cells cannot be; a scribbled circle ends here. */
#define DEPTH_MAX 100000

/* What the name points to, with its number, as one. 0, -ENOENT (negative), -EAGAIN (it moved). */
static int target_of(struct shmlock_arena *arena, uint32_t name, uint32_t seq, uint32_t inode,
		     struct walk_target *target)
{
	struct shm_cell *c = cell_at(arena, name);

	if (!inode)
		return -ENOENT;
	if (!cell_valid(arena, inode))
		return -EUCLEAN;
	target->inode = inode;
	target->ino = inode_ino(arena, inode);
	target->name = name;
	/* Still pointed to after reading the generation: so that is the generation meant. */
	if (atomic_load_explicit(&c->d_inode, memory_order_acquire) != inode ||
	    atomic_load_explicit(&c->d_seq, memory_order_acquire) != seq)
		return -EAGAIN;
	return 0;
}

static int step(struct shmlock_arena *arena, const struct dir *dir, const struct name *name,
		struct walk_target *target)
{
	uint64_t budget = chain_budget(arena);
	struct name_key key;
	struct found found;
	int ret;

	name_key(arena, &key, dir->ino, name);
	do {
		ret = dcache_lookup(arena, &key, &found);
		if (!ret)
			ret = found.cell ? target_of(arena, found.cell, found.seq, found.inode,
						     target) :
					   -ENOENT;
	} while (ret == -EAGAIN && budget--);
	return ret == -EAGAIN ? -EUCLEAN : ret;
}

int walk_up(struct shmlock_arena *arena, struct dir *dir)
{
	struct shm_cell *inode = cell_at(arena, dir->cell), *name;
	uint32_t seq, cell, parent;

	if (dir->cell == SHM_ROOT)
		return 0;
	for (int tries = 0; tries < 1000000; tries++) {
		cell = atomic_load(&inode->i_dentry);
		if (!inode_is(arena, dir->ino))
			return -ENOENT;
		if (!cell_valid(arena, cell))
			return -EUCLEAN;
		name = cell_at(arena, cell);
		seq = atomic_load_explicit(&name->d_seq, memory_order_acquire);
		if (atomic_load_explicit(&name->d_inode, memory_order_acquire) == dir->cell) {
			uint64_t ino = atomic_load_explicit(&name->d_parent, memory_order_acquire);

			if (atomic_load_explicit(&name->d_seq, memory_order_acquire) != seq ||
			    !inode_is(arena, dir->ino))
				continue;
			parent = ino_cell(ino);
			if (!cell_valid(arena, parent))
				return -EUCLEAN;
			*dir = (struct dir){ parent, ino };
			return 0;
		}
	}
	return -EUCLEAN;
}

static inline enum walk_last type_of(const struct name *name)
{
	if (__builtin_expect((name->word[0] & 0xff) != '.', 1))
		return WALK_NORM;
	if (name->length == 1)
		return WALK_DOT;
	return name->length == 2 && name->bytes[1] == '.' ? WALK_DOTDOT : WALK_NORM;
}

static bool is_dir(struct shmlock_arena *arena, uint32_t inode)
{
	return S_ISDIR(inode_mode(arena, inode));
}

/* Go through one inner component. */
static int enter(struct shmlock_arena *arena, struct dir *dir, const struct name *name)
{
	struct walk_target target;
	int ret;

	switch (type_of(name)) {
	case WALK_DOT:
		return 0;
	case WALK_DOTDOT:
		return walk_up(arena, dir);
	default:
		ret = step(arena, dir, name, &target);
		if (ret)
			return ret;
		if (!is_dir(arena, target.inode)) /* also one that was removed just now */
			return inode_is(arena, target.ino) ? -ENOTDIR : -ENOENT;
		*dir = (struct dir){ target.inode, target.ino };
		return 0;
	}
}

static int walk_components(struct shmlock_arena *arena, const char *path, struct walk *walk)
{
	const char *p = path, *rest;
	int ret;

	walk->dir = walk_root(arena);
	walk->last = WALK_ROOT;
	walk->slash = false;
	while (*p == '/')
		p++;
	while (*p) {
		if (name_scan(p, &walk->name) > SHM_NAME_MAX) {
			/* Is it the last one, with a slash? Some errors come before this one. */
			rest = p + strcspn(p, "/");
			walk->slash = *rest && !rest[strspn(rest, "/")];
			return -ENAMETOOLONG;
		}
		rest = p + walk->name.length;
		while (*rest == '/')
			rest++;
		if (!*rest) {
			walk->last = type_of(&walk->name);
			walk->slash = rest[-1] == '/';
			return rest - path > (ptrdiff_t)WALK_PATH_MAX ? -ENAMETOOLONG : 0;
		}
		ret = enter(arena, &walk->dir, &walk->name);
		if (ret)
			return ret;
		p = rest;
	}
	return p == path ? -ENOENT : 0;
}

int walk_parent(struct shmlock_arena *arena, const char *path, struct walk *walk)
{
	int ret = walk_components(arena, path, walk);

	/* A path that is too long is too long wherever its first part leads. */
	if (__builtin_expect(ret < 0, 0) && strnlen(path, WALK_PATH_MAX + 1) > WALK_PATH_MAX) {
		walk->slash = false;
		return -ENAMETOOLONG;
	}
	return ret;
}

int walk_to(struct shmlock_arena *arena, const char *path, struct walk_target *target)
{
	struct walk walk;
	int ret = walk_parent(arena, path, &walk);

	if (ret)
		return ret;
	if (walk.last == WALK_NORM) {
		ret = step(arena, &walk.dir, &walk.name, target);
		if (!ret && walk.slash && !is_dir(arena, target->inode))
			ret = inode_is(arena, target->ino) ? -ENOTDIR : -ENOENT;
		return ret;
	}
	if (walk.last == WALK_DOTDOT)
		ret = walk_up(arena, &walk.dir);
	target->inode = walk.dir.cell;
	target->ino = walk.dir.ino;
	target->name = walk.dir.cell == SHM_ROOT ?
			       0 :
			       atomic_load(&cell_at(arena, walk.dir.cell)->i_dentry);
	return ret;
}

/* Name and directory of a name's cell, read as one. */
static int read_name(struct shmlock_arena *arena, uint32_t cell, char *name, uint32_t *length,
		     uint64_t *parent)
{
	struct shm_cell *c = cell_at(arena, cell);

	for (int tries = 0; tries < 1000; tries++) {
		uint32_t seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);

		*length = name_read(arena, c, name);
		*parent = atomic_load_explicit(&c->d_parent, memory_order_acquire);
		if (!(seq & 1) && *length &&
		    atomic_load_explicit(&c->d_seq, memory_order_acquire) == seq)
			return 0;
	}
	return -ENOENT;
}

int walk_path_of(struct shmlock_arena *arena, uint32_t cell, char *buf, size_t size)
{
	char name[SHM_NAME_MAX];
	size_t at = size;
	uint64_t parent;
	uint32_t length, kind;
	int ret;

	if (!cell_valid(arena, cell) || size < 2)
		return -EINVAL;
	kind = atomic_load(&cell_at(arena, cell)->d_flags) & SHM_KIND_MASK;
	if (kind != SHM_DENTRY && cell != SHM_ROOT)
		return -ENOENT;
	for (int depth = 0; kind == SHM_DENTRY && depth < DEPTH_MAX; depth++) {
		ret = read_name(arena, cell, name, &length, &parent);
		if (ret)
			return ret;
		if (at < length + 2)
			return -ERANGE;
		at -= length;
		memcpy(buf + at, name, length);
		buf[--at] = '/';
		if (ino_cell(parent) == SHM_ROOT)
			break;
		if (!inode_is(arena, parent))
			return -ENOENT;
		cell = atomic_load(&cell_at(arena, ino_cell(parent))->i_dentry);
		if (!cell_valid(arena, cell))
			return -EUCLEAN;
	}
	if (at == size)
		buf[--at] = '/';
	length = (uint32_t)(size - at);
	memmove(buf, buf + at, length);
	if (length < size)
		buf[length] = 0;
	return (int)length;
}
