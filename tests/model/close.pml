/* A model of the closing of a WakePipe's descriptor (trio_console/_console/wake.py), for the checker spin.
 *
 * The model has a consumer thread that waits and drains, a thread that wakes it, and two threads that close the pipe at
 * any moment. In all interleavings this is checked:
 *
 *   - after the descriptor was closed, no thread makes a system call on it, or is in one, because its number may belong
 *     to another file by then;
 *   - the descriptor is closed exactly once, when all threads have ended;
 *   - closing the pipe wakes a thread that waits (spin calls a thread that waits for ever an invalid end state).
 *
 * A system call is two steps, its beginning and its end. To take a reference is one step, and to drop one is one step: the
 * interpreter makes both atomic, with its lock or without. When the last reference is dropped, the descriptor is closed.
 *
 * A signal handler that calls the pipe needs no part of its own in the model: it acts like a thread that runs while the
 * interrupted call stands still. No call waits for another call (except `wait`, for the bell), so the actions of such a
 * handler are among the interleavings.
 *
 * Variants, each a preprocessor symbol:
 *
 *   RAISING    one call of each thread may end after any of its steps, as by an exception from a signal handler. The
 *              references of the call are dropped with its frame. A `close` that has ended so is called again.
 *   TSO        other threads see a thread's stores later, see wake.pml.
 *   MUTANT_*   a mistake, which the check must find.
 */

#define CONSUMER 0
#define CLOSER 1
#define OTHER_CLOSER 2
#define WAKER 3

bool closed;            /* `_closed` */
bool present = true;    /* `_bell` is the bell */
byte refs = 1;          /* references to the bell; the first is the pipe's */
bool bell;
bool open = true;       /* for the check only: whether the descriptor is open */
byte using;             /* for the check only: threads that are in a system call on the descriptor */
byte left;              /* threads that have ended */

#ifdef TSO

/* Only `_closed` goes through a buffer: a change of `_bell` also changes the count of references, and that step waits
 * until the buffer is empty. */
bool taken[4];

#define SAY_CLOSED(p) atomic { !taken[p] -> taken[p] = true }
#define LOOK_CLOSED(p, out) out = (closed || taken[p])
#define FENCE(p) (!taken[p])

proctype memory(byte p)
{
end:    do
        :: atomic { taken[p] -> closed = true; taken[p] = false }
        od
}

#else

#define SAY_CLOSED(p) closed = true
#define LOOK_CLOSED(p, out) out = closed
#define FENCE(p) true

#endif

#define BEGIN(p) atomic { FENCE(p) -> assert(open); using++ }
#define END atomic { assert(open); using-- }

/* `got`: whether this call has a reference. Without one it rings an object that does nothing. */
#define TAKE(p) atomic { FENCE(p) -> got = present; refs = refs + got }
#define LET_GO(p) d_step { FENCE(p) -> refs = refs - got; got = false; give_back_if_last() }

inline give_back_if_last()
{
        if
        :: (refs == 0 && open) -> assert(using == 0); open = false
        :: else
        fi
}

#ifdef RAISING
#define MAY_RAISE if :: raises > 0 -> raises--; goto raised :: true fi
#else
#define MAY_RAISE skip
#endif

inline ring(p)
{
        TAKE(p);
        MAY_RAISE;
        if
        :: got -> BEGIN(p); bell = true; END
        :: else
        fi;
        MAY_RAISE;
        LET_GO(p)
}

inline drop(p)
{
        d_step {
                FENCE(p) ->
                refs = refs - present;
                present = false;
                give_back_if_last()
        }
}

proctype closer(byte p)
{
        bool got, saw;
        byte raises = 1;
again:
#ifdef MUTANT_CLOSED_IS_ENOUGH
        LOOK_CLOSED(p, saw);
        if
        :: saw -> goto done
        :: else
        fi;
#endif
#ifdef MUTANT_RING_BEFORE_FLAG
        ring(p);
        MAY_RAISE;
        SAY_CLOSED(p);
        MAY_RAISE;
        drop(p);
#else
        SAY_CLOSED(p);
        MAY_RAISE;
#ifdef MUTANT_DROP_BEFORE_RING
        drop(p);
        MAY_RAISE;
        ring(p);
#else
#ifndef MUTANT_SILENT_CLOSE
        ring(p);
        MAY_RAISE;
#endif
#ifndef MUTANT_CLOSE_DOES_NOT_DROP
        drop(p);
#endif
#endif
#endif
        goto done;
raised:
        skip;
        LET_GO(p);
        goto again;
done:
        left++
}

proctype waker(byte p)
{
        bool got;
        byte raises = 1;
#ifdef MUTANT_WAKE_WITHOUT_REFERENCE
        if
        :: present -> BEGIN(p); bell = true; END
        :: else
        fi;
#else
        ring(p);
#endif
        goto done;
raised:
        skip;
        LET_GO(p);
done:
        left++
}

inline wait()
{
#ifdef MUTANT_WAIT_LOOKS_FIRST
        LOOK_CLOSED(CONSUMER, saw);
        TAKE(CONSUMER);
#else
        TAKE(CONSUMER);
        MAY_RAISE;
        LOOK_CLOSED(CONSUMER, saw);
#endif
        MAY_RAISE;
        if
        :: saw -> skip
        :: else ->
                assert(got);
#ifdef MUTANT_WAIT_WITHOUT_REFERENCE
                LET_GO(CONSUMER);
#endif
                BEGIN(CONSUMER);
                if
                :: atomic { bell -> assert(open); using-- }
#ifdef RAISING
                :: atomic { raises > 0 -> raises--; assert(open); using--; goto raised }
#endif
                fi
        fi;
        LET_GO(CONSUMER)
}

inline drain()
{
        LOOK_CLOSED(CONSUMER, saw);
        MAY_RAISE;
        if
        :: saw -> skip
        :: else ->
                TAKE(CONSUMER);
                MAY_RAISE;
                if
                :: got -> BEGIN(CONSUMER); bell = false; END
                :: else
                fi;
                MAY_RAISE;
                LET_GO(CONSUMER)
        fi
}

proctype consumer()
{
        bool got, saw;
        byte turns, raises = 1;
again:
        do
        :: (turns < 3) ->
                turns++;
                if
                :: wait()
                :: drain()
                fi;
                saw = false
        :: break
        od;
        goto done;
raised:
        skip;
        LET_GO(CONSUMER);
        goto again;
done:
        left++
}

proctype checker()
{
        (left == 4) -> assert(!open && refs == 0)
}

init
{
        atomic {
                run consumer();
                run closer(CLOSER);
                run closer(OTHER_CLOSER);
                run waker(WAKER);
                run checker();
#ifdef TSO
                run memory(CLOSER);
                run memory(OTHER_CLOSER)
#endif
        }
}
