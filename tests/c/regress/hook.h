/* SPDX-License-Identifier: MIT */
/*
 * Put before every file of the core by `gcc -include`: each access to a shared word (all of them
 * are atomic) first calls regress_access(), which can kill this process there, or do what another
 * task might do just there.  Needs gcc or clang with gcc's <stdatomic.h>.
 */
#ifndef REGRESS_HOOK_H
#define REGRESS_HOOK_H

#include <stdatomic.h>

void regress_access(int store);

#undef atomic_load_explicit
#define atomic_load_explicit(at, order) \
	__extension__({ \
		__auto_type at_ = (at); \
		__typeof__((void)0, *at_) value_; \
		regress_access(0); \
		__atomic_load(at_, &value_, (order)); \
		value_; \
	})

#undef atomic_store_explicit
#define atomic_store_explicit(at, value, order) \
	__extension__({ \
		__auto_type at_ = (at); \
		__typeof__((void)0, *at_) value_ = (value); \
		regress_access(1); \
		__atomic_store(at_, &value_, (order)); \
	})

#undef atomic_exchange_explicit
#define atomic_exchange_explicit(at, value, order) \
	__extension__({ \
		__auto_type at_ = (at); \
		__typeof__((void)0, *at_) value_ = (value), old_; \
		regress_access(1); \
		__atomic_exchange(at_, &value_, &old_, (order)); \
		old_; \
	})

#define REGRESS_CAS(at, expected, value, weak, yes, no) \
	__extension__({ \
		__auto_type at_ = (at); \
		__typeof__((void)0, *at_) value_ = (value); \
		regress_access(1); \
		__atomic_compare_exchange(at_, (expected), &value_, (weak), (yes), (no)); \
	})
#undef atomic_compare_exchange_strong_explicit
#define atomic_compare_exchange_strong_explicit(at, expected, value, yes, no) \
	REGRESS_CAS(at, expected, value, 0, yes, no)
#undef atomic_compare_exchange_weak_explicit
#define atomic_compare_exchange_weak_explicit(at, expected, value, yes, no) \
	REGRESS_CAS(at, expected, value, 1, yes, no)
#undef atomic_compare_exchange_strong
#define atomic_compare_exchange_strong(at, expected, value) \
	REGRESS_CAS(at, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
#undef atomic_compare_exchange_weak
#define atomic_compare_exchange_weak(at, expected, value) \
	REGRESS_CAS(at, expected, value, 1, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

#define REGRESS_FETCH(what, at, value) \
	__extension__({ \
		regress_access(1); \
		__atomic_fetch_##what((at), (value), __ATOMIC_SEQ_CST); \
	})
#undef atomic_fetch_add
#define atomic_fetch_add(at, value) REGRESS_FETCH(add, at, value)
#undef atomic_fetch_sub
#define atomic_fetch_sub(at, value) REGRESS_FETCH(sub, at, value)
#undef atomic_fetch_or
#define atomic_fetch_or(at, value) REGRESS_FETCH(or, at, value)
#undef atomic_fetch_and
#define atomic_fetch_and(at, value) REGRESS_FETCH(and, at, value)

#endif
