/* A model of the grant of a ring, and of its revocation (trio_console/_console/ring.py), for the checker spin.
 *
 * The producer stores how many bytes it may push without reading the consumer's counter again (`_grant`). The consumer may
 * take this grant back at any moment (`revoke`). In all interleavings this is checked: when both threads have ended, no
 * byte is granted, so each later chunk is refused.
 *
 * Variants, each a preprocessor symbol:
 *
 *   TSO        other threads see a thread's stores later, see wake.pml.
 *   FENCED     each side passes one mutex between its store and its read, see wake.pml.
 *   BARE, EARLY   with FENCED: the producer does not pass the mutex, or passes it before its store.
 *   MUTANT_*   a mistake, which the check must find.
 */

#define GRANTED 0
#define REVOKED 1
#define MUTEX 2

#define PRODUCER 0
#define CONSUMER 1

byte mem[3];
byte left;              /* threads that have ended, and whose stores are visible to all */

#ifdef TSO

#define BUFFER 4
typedef buffer { byte n; byte var[BUFFER]; byte val[BUFFER] };
buffer buf[2];
byte at;                /* an index that is only used inside one indivisible step */

#define WRITE(p, v, x) atomic { (buf[p].n < BUFFER) -> \
        buf[p].var[buf[p].n] = v; buf[p].val[buf[p].n] = x; buf[p].n++ }
#define READ(p, v, out) d_step { \
        out = mem[v]; at = 0; \
        do \
        :: (at < buf[p].n) -> \
                if \
                :: (buf[p].var[at] == v) -> out = buf[p].val[at] \
                :: else \
                fi; \
                at++ \
        :: else -> break \
        od; \
        at = 0 }
#define EMPTY(p) (buf[p].n == 0)

proctype memory(byte p)
{
end:    do
        :: d_step { (buf[p].n > 0) ->
                mem[buf[p].var[0]] = buf[p].val[0];
                at = 1;
                do
                :: (at < buf[p].n) ->
                        buf[p].var[at - 1] = buf[p].var[at];
                        buf[p].val[at - 1] = buf[p].val[at];
                        at++
                :: else -> break
                od;
                at = 0;
                buf[p].n--;
                buf[p].var[buf[p].n] = 0;
                buf[p].val[buf[p].n] = 0 }
        od
}

#else

#define WRITE(p, v, x) mem[v] = x
#define READ(p, v, out) out = mem[v]
#define EMPTY(p) true

#endif

#ifdef FENCED
inline pass(p)
{
        atomic { mem[MUTEX] == 0 -> mem[MUTEX] = 1 };
        WRITE(p, MUTEX, 0)
}
#else
#define pass(p) skip
#endif

/* The producer offers three chunks. Each may use up the grant, and then the next one asks for a new grant. */
proctype producer()
{
        byte offered, granted, revoked;

        do
        :: (offered < 3) ->
                offered++;
                READ(PRODUCER, GRANTED, granted);
                if
                :: granted              /* the chunk goes into the ring */
                :: true ->
#ifdef MUTANT_LOOKS_FIRST
                        READ(PRODUCER, REVOKED, revoked);
                        WRITE(PRODUCER, GRANTED, 1);
#else
#ifdef EARLY
                        pass(PRODUCER);
#endif
                        WRITE(PRODUCER, GRANTED, 1);
#if !defined(EARLY) && !defined(BARE)
                        pass(PRODUCER);
#endif
                        READ(PRODUCER, REVOKED, revoked);
#endif
                        if
                        :: revoked -> WRITE(PRODUCER, GRANTED, 0)
                        :: else
                        fi
                fi;
                granted = 0
        :: else -> break
        od;
        atomic { EMPTY(PRODUCER) -> left++ }
}

proctype consumer()
{
#ifdef MUTANT_TAKES_BACK_FIRST
        WRITE(CONSUMER, GRANTED, 0);
        WRITE(CONSUMER, REVOKED, 1);
#else
        WRITE(CONSUMER, REVOKED, 1);
        pass(CONSUMER);
        WRITE(CONSUMER, GRANTED, 0);
#endif
        atomic { EMPTY(CONSUMER) -> left++ }
}

proctype checker()
{
        (left == 2) -> assert(!mem[GRANTED])
}

init
{
        atomic {
                run producer();
                run consumer();
                run checker();
#ifdef TSO
                run memory(PRODUCER);
                run memory(CONSUMER)
#endif
        }
}
