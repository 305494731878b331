/* How a WakePipe (trio_console/_wake.py) gives its descriptor back, for spin.
 *
 * A consumer that waits and drains, a thread that wakes it, and two that close the pipe, at any moment. Checked over all
 * interleavings:
 *
 *   - nobody makes a system call on the descriptor after it was given back, nor is in one then: the number may
 *     be somebody else's file by that time;
 *   - it is given back, exactly once, when all have left;
 *   - closing wakes a thread that waits (spin's invalid end states).
 *
 * A system call is two steps, its beginning and its end. The lock is one: taking it and giving it back wait until the
 * thread's stores are visible, as the machine's instructions for it do.
 *
 * Variants, each a preprocessor symbol:
 *
 *   TSO        stores become visible later, see wake.pml.
 *   LOCKED     `drain` holds the lock: what is done without the interpreter lock.
 *   MUTANT_*   mistakes, to show that the check can fail.
 */

#define CLOSED 0
#define DRAINING 1

#define CONSUMER 0
#define CLOSER 1
#define OTHER_CLOSER 2
#define WAKER 3

byte mem[2];
bool locked;
byte sleepers;          /* these two only with the lock held */
bool released;
bool bell;
bool open = true;       /* the descriptor, as only the check knows it */
byte using;             /* threads that are in a system call on it, likewise */
byte left;              /* threads that are done */

#ifdef TSO

/* One store at most is under way: all there is here are two flags, and a lock between most of them. */
typedef buffer { bool taken; byte var; byte val };
buffer buf[4];

#define WRITE(p, v, x) atomic { !buf[p].taken -> buf[p].var = v; buf[p].val = x; buf[p].taken = true }
#define READ(p, v, out) out = ((buf[p].taken && buf[p].var == v) -> buf[p].val : mem[v])
#define FENCE(p) (!buf[p].taken)

proctype memory(byte p)
{
end:    do
        :: atomic { buf[p].taken -> mem[buf[p].var] = buf[p].val; buf[p].taken = false; buf[p].var = 0; buf[p].val = 0 }
        od
}

#else

#define WRITE(p, v, x) mem[v] = x
#define READ(p, v, out) out = mem[v]
#define FENCE(p) true

#endif

#define LOCK(p) atomic { (FENCE(p) && !locked) -> locked = true }
#define UNLOCK(p) atomic { FENCE(p) -> locked = false }

#define BEGIN(p) atomic { FENCE(p) -> assert(open); using++ }
#define END atomic { assert(open); using-- }

/* With the lock held. */
inline release_if_left(p)
{
        READ(p, CLOSED, closed);
        READ(p, DRAINING, draining);
#ifdef MUTANT_CLOSE_DOES_NOT_LOOK
        draining = false;
#endif
        if
        :: (closed && !(sleepers || draining || released)) ->
                released = true;
                atomic { FENCE(p) -> assert(open && using == 0); open = false }
        :: else
        fi
}

inline close(p)
{
        LOCK(p);
        READ(p, CLOSED, closed);
        if
        :: closed -> skip
        :: else ->
#ifdef MUTANT_CLOSE_LOOKS_FIRST
                READ(p, DRAINING, early);
                WRITE(p, CLOSED, 1);
                if
                :: !early -> atomic { FENCE(p) -> assert(open && using == 0); released = true; open = false }
                :: else
                fi;
#else
                WRITE(p, CLOSED, 1);
#ifndef MUTANT_SILENT_CLOSE
                if
                :: sleepers -> BEGIN(p); bell = true; END
                :: else
                fi;
#endif
                release_if_left(p);
#endif
        fi;
        UNLOCK(p)
}

proctype closer(byte p)
{
        bool closed, draining, early;
        close(p);
        left++
}

proctype waker()
{
        bool closed;
#ifndef MUTANT_WAKE_WITHOUT_LOCK
        LOCK(WAKER);
#endif
        READ(WAKER, CLOSED, closed);
        if
        :: !closed -> BEGIN(WAKER); bell = true; END
        :: else
        fi;
#ifndef MUTANT_WAKE_WITHOUT_LOCK
        UNLOCK(WAKER);
#endif
        left++
}

inline wait()
{
        LOCK(CONSUMER);
        READ(CONSUMER, CLOSED, closed);
        if
        :: closed -> UNLOCK(CONSUMER)
        :: else ->
                sleepers++;
                UNLOCK(CONSUMER);
                BEGIN(CONSUMER);
                atomic { bell -> assert(open); using-- };
                LOCK(CONSUMER);
                sleepers--;
                release_if_left(CONSUMER);
                UNLOCK(CONSUMER)
        fi
}

inline drain()
{
#ifdef LOCKED
        LOCK(CONSUMER);
        READ(CONSUMER, CLOSED, closed);
        if
        :: !closed -> BEGIN(CONSUMER); bell = false; END
        :: else
        fi;
        UNLOCK(CONSUMER)
#else
#ifdef MUTANT_DRAIN_LOOKS_FIRST
        READ(CONSUMER, CLOSED, closed);
        WRITE(CONSUMER, DRAINING, 1);
#else
        WRITE(CONSUMER, DRAINING, 1);
        READ(CONSUMER, CLOSED, closed);
#endif
        if
        :: !closed -> BEGIN(CONSUMER); bell = false; END
        :: else
        fi;
        WRITE(CONSUMER, DRAINING, 0);
#ifndef MUTANT_DRAIN_JUST_LEAVES
        READ(CONSUMER, CLOSED, closed);
        if
        :: closed ->
                LOCK(CONSUMER);
                release_if_left(CONSUMER);
                UNLOCK(CONSUMER)
        :: else
        fi
#endif
#endif
}

proctype consumer()
{
        bool closed, draining, early;
        byte turns;
        do
        :: (turns < 3) ->
                turns++;
                if
                :: wait()
                :: drain()
                fi
        :: break
        od;
        left++
}

proctype checker()
{
        (left == 4) -> assert(!open && released)
}

init
{
        atomic {
                run consumer();
                run closer(CLOSER);
                run closer(OTHER_CLOSER);
                run waker();
                run checker();
#ifdef TSO
                run memory(CONSUMER);
                run memory(CLOSER);
                run memory(OTHER_CLOSER);
                run memory(WAKER)
#endif
        }
}
