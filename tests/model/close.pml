/* How a WakePipe (trio_console/_console/wake.py) closes its descriptor, for spin.
 *
 * There are a consumer that waits and drains, a thread that wakes it, and two threads that close the pipe at any moment.
 * Checked over all interleavings:
 *
 *   - no thread makes a system call on the descriptor, or is in one, after it was closed: its number may belong to
 *     another file by then;
 *   - it is closed exactly once, when all threads have left;
 *   - closing the pipe wakes a thread that waits (spin's invalid end states).
 *
 * A system call is two steps, its beginning and its end. Taking a reference is one step, and so is dropping one: the
 * interpreter makes them atomic, with its lock or without. Dropping the last reference closes the descriptor.
 *
 * A signal handler that calls the pipe is, for the call that it interrupts, a thread that runs while that call stands
 * still. No call waits for another one (except `wait` for the bell), so all its actions are among the interleavings.
 *
 * Variants, each a preprocessor symbol:
 *
 *   RAISING    one call of each thread may end after any of its steps, as if by an exception from a handler: its
 *              references go with its frame. A `close` that ended so is done again.
 *   TSO        stores become visible later, see wake.pml.
 *   MUTANT_*   mistakes, to show that the check can fail.
 */

#define CONSUMER 0
#define CLOSER 1
#define OTHER_CLOSER 2
#define WAKER 3

bool closed;            /* `_closed` */
bool present = true;    /* `_bell` is the bell */
byte refs = 1;          /* to the bell; the first is the pipe's */
bool bell;
bool open = true;       /* the descriptor, as only the check knows it */
byte using;             /* threads that are in a system call on it, likewise */
byte left;              /* threads that are done */

#ifdef TSO

/* One flag goes through the buffers: `_bell` is changed together with a count of references, which waits for them. */
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

/* `got`: whether this call has a reference; without one it rings what stands for a bell, which is nothing. */
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
