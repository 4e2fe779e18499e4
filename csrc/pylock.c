/* SPDX-License-Identifier: MIT */
/*
 * LockBase: the Python type under NameLock, in C for one reason: signals.
 *
 * Python runs signal handlers between bytecodes, also before the first one of a function.  A
 * handler that raises there, in a Python __exit__, would leave the lock held for ever.  A C
 * method is entered and left without such a gap; so `with lock:` takes and releases the lock
 * here, and only waiting (which gives up the GIL and handles signals) is left to Python, in
 * NameLock._enter_slow and _acquire_slow.  It is also three times faster.
 *
 * The GIL is not released in here: nothing in here waits.  (In the debug build a pause point may
 * stop the caller, so there it is.)
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>

#include "shmlock.h"

struct lock_object {
	PyObject_HEAD
	PyObject *path; /* bytes; keeps name.path alive */
	struct shmlock_name name;
};

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	struct lock_object *self;
	unsigned long long address;
	PyObject *path;
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "KS:LockBase", &address, &path))
		return NULL;
	self = (struct lock_object *)alloc(type, 0);
	if (!self)
		return NULL;
	Py_INCREF(path);
	self->path = path;
	self->name.arena = (struct shmlock_arena *const *)(uintptr_t)address;
	self->name.path = PyBytes_AsString(path);
	return (PyObject *)self;
}

static void lock_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	Py_XDECREF(((struct lock_object *)object)->path);
	release(object);
	Py_DECREF(type);
}

static int release(PyObject *self)
{
	int ret;

#ifdef SHMLOCK_DEBUG
	Py_BEGIN_ALLOW_THREADS
#endif
	ret = shmlock_name_release(&((struct lock_object *)self)->name);
#ifdef SHMLOCK_DEBUG
	Py_END_ALLOW_THREADS
#endif
	return ret;
}

/* 1: taken; 0: not yet, or not at all; -1: an exception is set and nothing is held. */
static int try_acquire(PyObject *self)
{
	struct shmlock_name *name = &((struct lock_object *)self)->name;
	PyObject *logged;
	int ret;

	/* A thread without its task goes the slow way, without the GIL: taking a slot may wait for
	 * a file lock, held by a thread that needs the GIL to go on (unlink()). */
	if (!*name->arena || !shmlock_task_id(*name->arena))
		return 0;
#ifdef SHMLOCK_DEBUG
	Py_BEGIN_ALLOW_THREADS
#endif
	ret = shmlock_name_acquire(name, 0);
#ifdef SHMLOCK_DEBUG
	Py_END_ALLOW_THREADS
#endif
	if (ret || !name->recovered)
		return !ret;
	logged = PyObject_CallMethod(self, "_log_recovered", NULL);
	if (!logged) { /* a signal handler raised in there: as if never taken, the mark stays */
		shmlock_name_abandon(name);
		return -1;
	}
	Py_DECREF(logged);
	return 1;
}

static PyObject *lock_enter(PyObject *self, PyObject *unused)
{
	int taken = try_acquire(self);
	PyObject *result;

	(void)unused;
	if (taken < 0)
		return NULL;
	if (!taken) {
		result = PyObject_CallMethod(self, "_enter_slow", NULL);
		if (!result)
			return NULL;
		Py_DECREF(result);
	}
	Py_INCREF(self);
	return self;
}

static PyObject *lock_release(PyObject *self, PyObject *unused)
{
	int ret = release(self);

	(void)unused;
	if (ret)
		return PyObject_CallMethod(self, "_release_failed", "i", ret);
	Py_RETURN_NONE;
}

static PyObject *lock_exit(PyObject *self, PyObject *args)
{
	(void)args;
	return lock_release(self, NULL);
}

/* The manners of threading.Lock.acquire, its messages included. */
static PyObject *lock_acquire(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "blocking", "timeout", NULL };
	PyObject *timeout_object = NULL;
	double timeout = -1;
	int blocking = 1, taken;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|pO:acquire", names, &blocking,
					 &timeout_object))
		return NULL;
	if (timeout_object) {
		timeout = PyFloat_AsDouble(timeout_object);
		if (timeout == -1 && PyErr_Occurred())
			return NULL;
	}
	if (!blocking && timeout != -1) {
		PyErr_SetString(PyExc_ValueError,
				"can't specify a timeout for a non-blocking call");
		return NULL;
	}
	if (!(timeout >= 0) && timeout != -1) { /* NaN too */
		PyErr_SetString(PyExc_ValueError, "timeout value must be a non-negative number");
		return NULL;
	}
	if (timeout > 9e9) { /* ns in 63 bits */
		PyErr_SetString(PyExc_OverflowError, "timeout value is too large");
		return NULL;
	}
	taken = try_acquire(self);
	if (taken < 0)
		return NULL;
	if (taken)
		Py_RETURN_TRUE;
	return PyObject_CallMethod(self, "_acquire_slow", "Od", blocking ? Py_True : Py_False,
				   timeout);
}

static PyObject *get_address(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromVoidPtr(&((struct lock_object *)self)->name);
}

static PyObject *get_path(PyObject *self, void *unused)
{
	PyObject *path = ((struct lock_object *)self)->path;

	(void)unused;
	Py_INCREF(path);
	return path;
}

static PyObject *get_recovered(PyObject *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong((long)((struct lock_object *)self)->name.recovered);
}

static PyMethodDef lock_methods[] = {
	{ "__enter__", lock_enter, METH_NOARGS, "Take the lock; wait for it if need be." },
	{ "__exit__", lock_exit, METH_VARARGS, "Release the lock." },
	{ "acquire", (PyCFunction)(void (*)(void))lock_acquire, METH_VARARGS | METH_KEYWORDS,
	  "acquire(blocking=True, timeout=-1)\n--\n\nTake the lock; True if it was got." },
	{ "release", lock_release, METH_NOARGS, "Release the lock." },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef lock_attributes[] = {
	{ "_address", get_address, NULL, "Address of the struct shmlock_name.", NULL },
	{ "_path", get_path, NULL, "The path, as bytes.", NULL },
	{ "recovered", get_recovered, NULL,
	  "True: the holder before us died while holding the lock.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot lock_slots[] = {
	{ Py_tp_new, lock_new },
	{ Py_tp_dealloc, lock_dealloc },
	{ Py_tp_methods, lock_methods },
	{ Py_tp_getset, lock_attributes },
	{ Py_tp_doc, "Base of NameLock: taking and releasing without a gap for signals." },
	{ 0, NULL },
};

static PyType_Spec lock_spec = {
	.name = "shmlock._native.LockBase",
	.basicsize = sizeof(struct lock_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.slots = lock_slots,
};

int shmlock_install_types(const char *module)
{
	/* cffi gives up the GIL round each call. */
	PyGILState_STATE state = PyGILState_Ensure();
	PyObject *m = PyImport_ImportModule(module);
	PyObject *type = m ? PyType_FromSpec(&lock_spec) : NULL;
	int ret = type ? PyObject_SetAttrString(m, "LockBase", type) : -1;

	Py_XDECREF(type);
	Py_XDECREF(m);
	if (ret)
		PyErr_Clear();
	PyGILState_Release(state);
	return ret ? -ENOMEM : 0;
}
