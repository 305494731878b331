/* A program that starts in a millisecond, for a sweep over what the *host* does: it says what an agent says until it is
 * ready, and ends when it is told to, or when its console ends. Started as a warden it only waits for its end.
 *
 * `frames.h` has the two frames that it says, made by the package.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frames.h"

static int console;

static int get(unsigned char *to, size_t size) {
    while (size) {
        ssize_t n = read(console, to, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        to += n;
        size -= (size_t)n;
    }
    return 0;
}

static void say(const unsigned char *frame, size_t size) {
    while (size) {
        ssize_t n = write(console, frame, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            exit(1);
        frame += n;
        size -= (size_t)n;
    }
}

int main(int argc, char **argv) {
    static unsigned char frame[5 * 1024 * 1024];
    int is_agent = argc > 2 && !strcmp(argv[argc - 2], "--fd");
    console = atoi(argv[argc - 1]);
    for (int count = 0;; count++) {
        unsigned char length[4];
        if (!is_agent) {
            if (get(frame, 1))
                return 0;
            continue;
        }
        if (get(length, 4))
            return 0;
        size_t size = (size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 | length[3];
        if (size > sizeof frame || get(frame, size))
            return 1;
        if (count == 0)
            say(RESOLVED, sizeof RESOLVED);
        else if (count == 1)
            say(READY, sizeof READY);
        else if (memmem(frame, size, "core.shutdown", 13))
            return 0;
    }
}
