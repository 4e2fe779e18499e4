/* SPDX-License-Identifier: MIT */
/* Reading without locks: stat and directory listings. Each answer is validated, none waits. */
#ifndef SHMLOCK_LISTING_H
#define SHMLOCK_LISTING_H

#include "walk.h"

int listing_stat(struct shmlock_arena *arena, const char *path, struct shmlock_stat *out);
int64_t listing_dir(struct shmlock_arena *arena, const char *path, char *buf, size_t size);

#endif
