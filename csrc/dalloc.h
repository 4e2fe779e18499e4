/* SPDX-License-Identifier: MIT */
/*
 * A new name: a cell filled in, listed in its directory, then hashed.  Born locked, so that a
 * drain that meets it waits for it (rule P2) and nobody else can use it before it is checked.
 *
 * The store/barrier/load pair for a new name: its entry and its hashing (D1) against S_DYING (D2).
 *
 * If the holder dies: before it is hashed, recovery unlists and frees it; after, it is just a
 * negative name.
 */
#ifndef SHMLOCK_DALLOC_H
#define SHMLOCK_DALLOC_H

#include "dirblock.h"
#include "stock.h"

/* A name in the making. Returns it locked and held, listed, not hashed. -ENOSPC, -ENOENT, ... */
int dalloc(struct task *task, const struct dir *dir, const struct name_key *key, uint32_t *name);

/* Hash it, if the bucket is still as the lookup left it. True: anybody can find it now. */
bool dalloc_publish(struct task *task, const struct name_key *key, uint64_t bucket, uint32_t name);

/* Not hashed after all: give everything back. */
void dalloc_discard(struct task *task, uint32_t name);

#endif
