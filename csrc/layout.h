/* SPDX-License-Identifier: MIT */
/*
 * The bytes of an arena: every structure that lives in shared memory, and nothing else.
 *
 * Rules of this file
 *   - fixed-width integers and indices only.  The one exception is `shm_slot.live`, a libc
 *     mutex, whose size and word offset are written into the header and compared at attach;
 *   - every word that two tasks may touch is _Atomic.  Each says who may write it, under what,
 *     and what a reader may conclude from it;
 *   - a change of any size, offset or meaning raises SHM_LAYOUT_VERSION (see docs/arena.md).
 *
 * An arena is:  header | slots (one per task) | buckets (names by hash) | cells | debug page
 *
 * A *cell* is two cache lines.  It is one of: a name with the inode made for it (the usual
 * case: the name in line 0, the inode in line 1), a block of a directory's list of names, or a
 * piece of text (a long name, a symlink's target).  Cells are referred to by a 32-bit index;
 * 0 is "none", 1 is the root directory's inode (a root has no name, so it is never locked).
 */
#ifndef SHMLOCK_LAYOUT_H
#define SHMLOCK_LAYOUT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SHM_MAGIC 0x314b434f4c4d4853ull /* "SHMLOCK1", little endian: also the byte-order check */
#define SHM_LAYOUT_VERSION 1u

#define SHM_LINE 64u
#define SHM_NONE 0u
#define SHM_ROOT 1u /* cell index of the root directory's inode */

#define SHM_MIN_DENTRIES 64u
#define SHM_MAX_DENTRIES (1u << 26)
#define SHM_MAX_TASKS 16383u
#define SHM_MIN_BUCKETS (1u << 16)
#define SHM_BUCKETS_PER_DENTRY 4u

typedef _Atomic uint32_t shm_word;
typedef _Atomic uint64_t shm_word64;

/*
 * The lock word.  d_flags of a name, i_flags and i_rename of a directory and the two global
 * rename locks all have this form, so that waiting, circles, recovery and listings are written
 * once.  Owner and state are ONE word: a lock whose owner is written apart can lose it.
 *
 *   bit 31     DCACHE_LOCK         set by the CAS that claims, cleared by the RMW that unlocks
 *   bit 30     DCACHE_LOCK_WAITER  set by a waiter's CAS, only while LOCK is set; cleared by the
 *                                  unlocking RMW together with LOCK, which then wakes ALL
 *   bits 16-29 owner: task slot, 1 to 16383; 0 when unlocked
 *   bits 10-15 owner: operation of that task (0 is its synchronous one; room for async ones)
 *   bits 0-9   flags of the thing locked: written only by the lock's owner, except where noted
 */
#define DCACHE_LOCK 0x80000000u
#define DCACHE_LOCK_WAITER 0x40000000u
#define SHM_OWNER_SHIFT 16
#define SHM_OWNER_MASK 0x3fff0000u
#define SHM_OP_MASK 0x0000fc00u
#define SHM_FLAGS_MASK 0x000003ffu
#define SHM_OWNED_MASK (DCACHE_LOCK | DCACHE_LOCK_WAITER | SHM_OWNER_MASK | SHM_OP_MASK)

/* Flags of a cell's d_flags. Bits 0-2: what the cell is.  Changed only while owning LOCK. */
#define SHM_KIND_MASK 0x007u
#define SHM_FREE 0u   /* nobody's; both lines free. The only kind that a task may claim unasked */
#define SHM_STOCK 1u  /* claimed by its owner for later use, listed in the owner's stock[] */
#define SHM_DENTRY 2u /* line 0 is a name; line 1 is the inode made for it, or free */
#define SHM_BLOCK 3u  /* a directory block, see struct shm_block */
#define SHM_TEXT 4u   /* text, see struct shm_text */
#define SHM_INODE 5u  /* line 1 is an inode (the root's); line 0 is no name */
/* d_flags is also used for: */
#define DCACHE_PAR_LOOKUP 0x008u /* in-lookup. Reserved: a ramfs arena's lookup is always finished */
#define DCACHE_PERSON 0x010u     /* LOCK is held for a person (NameLock): a removal answers EBUSY */
#define DCACHE_RECOVERED 0x020u  /* a person's lock whose holder died; until somebody has taken it */
#define DCACHE_RING 0x040u       /* some ring has it: saves pushing it twice. A hint, may be stale */

/* Flags of a directory inode's i_flags. LOCK there means: i_rwsem is held exclusive. */
#define S_DYING 0x001u /* set and cleared only together with LOCK: a removal is in progress, wait */
#define S_DEAD 0x002u  /* removed: ENOENT. Never cleared in this inode's life; the next one starts at 0 */

/*
 * A link of a bucket's lock-free chain (chain.c): next cell, a tag that every change raises (so
 * that a stale compare-and-swap fails), and a mark: the cell that holds it is being taken out.
 */
#define SHM_LINK_NEXT 0x00000000ffffffffull
#define SHM_LINK_MARK 0x8000000000000000ull
#define SHM_LINK_TAG 0x7fffffff00000000ull
#define SHM_LINK_TAG_ONE 0x0000000100000000ull

#define SHM_NAME_MAX 255u
#define SHM_NAME_INLINE 31u
#define SHM_NAME_WORDS 4u

struct shm_cell {
	/* Line 0: the name (a dentry).  Written only by the owner of LOCK; read by everybody. */
	shm_word d_flags;   /* the lock word */
	shm_word d_seq;     /* odd: this name is changing what it is or points to: read again.
			     * Even: raised by 2 with each change. Never reset, also across reuse */
	shm_word64 d_parent; /* ino of the directory; that directory may be long dead (then garbage) */
	shm_word d_inode;   /* cell of the inode; 0: the name is negative.  THE commit word of
			     * create, mkdir, unlink and rmdir */
	shm_word d_hash;    /* of (directory, name); its low bits give the bucket */
	shm_word64 d_next;  /* link in the bucket's chain */
	shm_word64 d_name[SHM_NAME_WORDS]; /* byte 31 is the length up to 31, the rest zero padded;
			     * longer: byte 31 is 255, byte 30 the length, bytes 24-27 the first
			     * text cell, bytes 0-23 the first 24 bytes of the name */

	/* Line 1: the inode.  Free when its mode is 0; claimed by the owner of this cell's LOCK. */
	shm_word64 i_id;     /* generation << 32 | mode as in stat(2), 0 if free. One word, so that
			      * freeing (next generation, no mode) is one store, which a death
			      * cannot cut in two. The generation is never reset;
			      * ino = generation << 32 | cell */
	shm_word i_flags;    /* lock word of a directory: i_rwsem exclusive, S_DYING, S_DEAD */
	shm_word i_nlink;    /* names that point here */
	shm_word64 i_children; /* of a directory: gen << 32 | its first block, 0 until the first
			      * child. With the generation, so that a late creator's CAS cannot
			      * give a block to the next directory that uses this cell */
	shm_word i_rename;   /* lock word: RENAME_LOCK, on the path of a cross-directory rename */
	shm_word i_dentry;   /* of a directory: the name that points here; guard: that name's LOCK */
	shm_word i_text;     /* of a symlink: first text cell; r/o while the inode lives */
	shm_word i_size;     /* of a symlink: bytes; r/o while the inode lives */
	shm_word i_lock;     /* lock word: link count of an inode with more than one name */
	shm_word d_block;    /* of the name in line 0: the directory block that lists it; 0 none.
			      * Written, with the entry, under that block's LOCK */
	shm_word d_occupant; /* debug build: task inside the name's critical section (the judge) */
	shm_word spare[3];
};

/*
 * A directory's names: blocks of entries, linked.  A name's entry never moves while the name is
 * hashed, so a listing that walks the blocks sees each lasting name exactly once.  New blocks are
 * put in after the first (i_children), under the first one's LOCK; blocks go only when the
 * directory is dead and they are empty.  A child's operation writes a block only when its name
 * is new in the directory, and the directory's inode line never.
 *
 * Entry e of block b counts if cell e says so too (d_block == b). If it does not, and cell e is
 * unlocked, the entry is an orphan of a death and free to be taken.
 */
#define SHM_BLOCK_ENTRIES 22u
#define SHM_BLOCK_LOW 8u

/*
 * Blocks and texts leave three words of the cell alone, because their values must never come back
 * in a later life: d_seq, the tag in d_next, and the generation in i_id.
 */
struct shm_block {
	shm_word d_flags; /* lock word, SHM_BLOCK; LOCK guards b_next of the first block and the
			   * taking of entries */
	shm_word d_seq;   /* left alone (odd: not a name) */
	shm_word64 b_dir; /* ino of the directory */
	shm_word b_next;  /* next block; 0 none */
	shm_word spare;
	shm_word64 d_next; /* left alone */
	/* Entries: cell of a name; 0 free.  Taken under LOCK; given back (CAS to 0) by the owner
	 * of that name's LOCK: the entry keeps the block from being freed meanwhile. */
	shm_word b_low[SHM_BLOCK_LOW];
	shm_word64 i_id; /* left alone */
	shm_word b_high[SHM_BLOCK_ENTRIES - SHM_BLOCK_LOW];
};

static inline shm_word *shm_block_entry(struct shm_block *block, uint32_t i)
{
	return i < SHM_BLOCK_LOW ? &block->b_low[i] : &block->b_high[i - SHM_BLOCK_LOW];
}

#define SHM_TEXT_WORDS 11u
#define SHM_TEXT_LOW 4u
#define SHM_TEXT_CELLS 3u /* of the longest name: 255 - 24 bytes in 3 x 88 */

struct shm_text {
	shm_word d_flags; /* SHM_TEXT; LOCK only while it is made */
	shm_word d_seq;   /* left alone */
	shm_word t_user;  /* cell of the name (later: or symlink inode) that it belongs to */
	shm_word t_next;  /* next text cell; 0 none */
	shm_word64 spare;
	shm_word64 d_next; /* left alone */
	shm_word64 t_low[SHM_TEXT_LOW];
	shm_word64 i_id; /* left alone */
	shm_word64 t_high[SHM_TEXT_WORDS - SHM_TEXT_LOW];
};

static inline shm_word64 *shm_text_word(struct shm_text *text, uint32_t i)
{
	return i < SHM_TEXT_LOW ? &text->t_low[i] : &text->t_high[i - SHM_TEXT_LOW];
}

_Static_assert(sizeof(struct shm_cell) == 2 * SHM_LINE, "a cell is two cache lines");
_Static_assert(offsetof(struct shm_cell, i_id) == SHM_LINE, "name and inode have a line each");
_Static_assert(sizeof(struct shm_block) == sizeof(struct shm_cell), "a block is a cell");
_Static_assert(sizeof(struct shm_text) == sizeof(struct shm_cell), "a text is a cell");
#define SHM_LEFT_ALONE(type) \
	_Static_assert(offsetof(struct type, d_seq) == offsetof(struct shm_cell, d_seq) && \
			       offsetof(struct type, d_next) == \
				       offsetof(struct shm_cell, d_next) && \
			       offsetof(struct type, i_id) == offsetof(struct shm_cell, i_id), \
		       #type " leaves d_seq, d_next and i_id where they are")
SHM_LEFT_ALONE(shm_block);
SHM_LEFT_ALONE(shm_text);

/*
 * A task's slot: one per attached thread.  Written only by its task, or, once the task is dead,
 * by whoever holds `live` as recoverer; read by everybody.
 *
 * Rule R4: a lock is written into held[] or names[] BEFORE the CAS that claims it and taken out
 * only AFTER the unlock and its wake-up, so that a record may name a lock that is not held, but
 * no lock of a dead task is without a record.
 */
#define SHM_HELD 8u     /* locks of one operation: 3 names, cells in the making, a directory */
#define SHM_NAMES 1040u /* locks for people, 1024 promised */
#define SHM_STOCK_MAX 32u
#define SHM_RING_MAX 256u
#define SHM_READS 8u
#define SHM_PINS 56u
#define SHM_COUNTERS 32u

/*
 * The redo record: what the operation in flight is about to change, written before its commit
 * word and cleared after its last store. Recovery asks the commit word whether it happened, then
 * finishes or takes back; doing that twice is harmless.
 */
struct shm_redo {
	shm_word code;  /* enum shm_redo_code; 0 none. Written last, cleared first */
	shm_word name;  /* the name's cell */
	shm_word inode; /* the inode's cell */
	shm_word text;  /* text cell in the making */
	shm_word64 ino; /* the inode's number: another generation means that it is done */
	shm_word name2, inode2; /* rename: the other end */
	shm_word64 ino2;
};

enum shm_redo_code {
	SHM_REDO_NONE,
	SHM_REDO_MAKE,   /* inode is being made for name; commit: name.d_inode = inode */
	SHM_REDO_REMOVE, /* name drops inode; commit: name.d_inode = 0, or S_DEAD of a directory */
};

/* What a task waits for; published in its slot, so that anybody can follow who waits for whom. */
enum shm_wait_kind {
	SHM_WAIT_NONE,
	SHM_WAIT_NAME,  /* a name's DCACHE_LOCK */
	SHM_WAIT_DYING, /* S_DYING of a directory, with empty hands (rule F3) */
	SHM_WAIT_DRAIN, /* rmdir: a child's DCACHE_LOCK (rule F5) */
	SHM_WAIT_RWSEM, /* a directory's i_rwsem */
	SHM_WAIT_RENAME_LOCK, /* RENAME_LOCK of a directory */
	SHM_WAIT_GLOBAL, /* rename_lock or s_vfs_rename_mutex */
	SHM_WAIT_LIST,  /* a directory's list of names: its first block's LOCK, some 50 ns */
	SHM_WAIT_KINDS
};

struct shm_slot {
	_Alignas(2 * SHM_LINE) pthread_mutex_t live; /* robust, process-shared, held for the task's
			      * life: the kernel marks its word when the task dies (rule R1, R2) */
	_Alignas(SHM_LINE) shm_word tgid; /* process; r/o while the task lives */
	shm_word tid;         /* thread; written last at attach, zeroed first at detach */
	shm_word64 start_time; /* of the thread, /proc/PID/stat field 22: with tid, an identity */
	shm_word generation;  /* raised at each attach */
	shm_word recover_tries; /* recoverers that died here; over 3 the arena is poisoned */
	shm_word64 attached_at; /* CLOCK_MONOTONIC ns */

	/* The operation in flight (operation 0; later there may be more). One line, no other
	 * task writes it. */
	_Alignas(SHM_LINE) shm_word held[SHM_HELD]; /* cells; 0 unused */
	shm_word held_dir; /* directory inode whose i_flags is (about to be) locked */
	shm_word op_spare[7];
	_Alignas(SHM_LINE) struct shm_redo redo;

	/* The wait in progress. wait_seq is odd while the rest is valid (a waiter's own seqlock). */
	_Alignas(SHM_LINE) shm_word wait_seq;
	shm_word wait_kind;    /* enum shm_wait_kind */
	shm_word64 wait_word;  /* arena offset of the lock word waited for */
	shm_word wait_cell;    /* its cell, for the listing */
	shm_word wait_spare;
	shm_word64 wait_since; /* CLOCK_MONOTONIC ns */

	/* Published readers and pins (never counts: a count cannot be repaired, recovery.md 7). */
	_Alignas(SHM_LINE) shm_word reads[SHM_READS]; /* directories whose i_rwsem is held shared */
	shm_word pins[SHM_PINS];    /* inodes kept alive by open handles */

	_Alignas(SHM_LINE) shm_word64 counters[SHM_COUNTERS]; /* enum shmlock_counter; only grow */

	/* Cells claimed ahead (guard: the task), and recently emptied names, oldest first out. */
	_Alignas(SHM_LINE) shm_word stock[SHM_STOCK_MAX];
	_Alignas(SHM_LINE) shm_word ring_head; /* hints only: every entry is checked when taken */
	shm_word ring_count;
	shm_word ring[SHM_RING_MAX];

	/* Locks for people. names[i] is the cell, names_since[i] when it was taken. */
	_Alignas(SHM_LINE) shm_word names_top; /* entries beyond it were never used since attach */
	shm_word names[SHM_NAMES];
	shm_word64 names_since[SHM_NAMES]; /* CLOCK_MONOTONIC_COARSE ns */
};

_Static_assert(sizeof(pthread_mutex_t) <= SHM_LINE, "the liveness mutex has a line of its own");
_Static_assert(sizeof(struct shm_redo) <= SHM_LINE, "the redo record is one line");
_Static_assert(sizeof(struct shm_slot) % (2 * SHM_LINE) == 0, "slots keep their alignment");

/* State of the arena as a whole. */
#define SHM_STATE_UNLINKED 1u /* forced unlink: new locks get ESTALE */
#define SHM_STATE_POISONED 2u /* recovery failed three times: ENOTRECOVERABLE */

struct shm_header {
	/* Written by the creator before the arena has its name; r/o from then on. */
	uint64_t magic;
	uint32_t layout_version;
	uint32_t build; /* 0 release, 1 debug: they refuse each other's arenas */
	uint32_t header_size, slot_size, cell_size;
	uint32_t mutex_size, mutex_word; /* sizeof(pthread_mutex_t), offset of its futex word */
	uint32_t pointer_bits;
	uint32_t locking; /* enum shmlock_locking */
	uint32_t dentries, tasks, buckets; /* usable cells; slots; a power of two */
	uint64_t length;                    /* of the whole object */
	uint64_t slots_offset, buckets_offset, cells_offset, debug_offset;
	uint64_t hash_secret[2];
	uint64_t pidns_dev, pidns_ino; /* pids mean something only inside one pid namespace */
	uint64_t created;              /* CLOCK_REALTIME ns */
	uint64_t spare[8];

	/* Words that change: a line each, so that none slows another. */
	_Alignas(SHM_LINE) shm_word state;
	_Alignas(SHM_LINE) shm_word hand; /* where the next search for free cells starts */
	_Alignas(SHM_LINE) shm_word rename_lock;        /* lock word */
	_Alignas(SHM_LINE) shm_word s_vfs_rename_mutex; /* lock word */
	_Alignas(SHM_LINE) shm_word64 latency_sleep;    /* ns, set_latency(); read per operation */
	shm_word64 latency_spin;
};

_Static_assert(offsetof(struct shm_header, state) == 4 * SHM_LINE, "header's fixed part");
_Static_assert(sizeof(struct shm_header) == 9 * SHM_LINE, "header's size");

/* Debug arenas only: pause points, the rules switched off, perturbation. One page. */
#define SHM_POINTS 64u
struct shm_point {
	shm_word state;   /* 0 off, 1 armed, 2 reached, 3 go */
	shm_word tid;     /* only this thread stops; 0: whoever comes first */
	shm_word reached; /* times it was reached while armed */
	shm_word who;     /* thread that reached it last */
};
struct shm_debug {
	shm_word64 broken_rules; /* bit per enum shmlock_rule: switched off */
	shm_word64 perturb_seed; /* 0: none */
	shm_word perturb_ppm;    /* chance of a disturbance at a pause point */
	shm_word violations;     /* two tasks in one name's critical section */
	shm_word spare[10];
	struct shm_point point[SHM_POINTS];
};

#endif
