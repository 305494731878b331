/* Makes a Python of a program that embeds one: its `main` becomes the interpreter's.
 *
 * `freeze-core` brings programs that contain a whole interpreter and run what is frozen beside them. This library, named
 * first among those that such a program needs, takes the place of the C library's function that calls `main`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef int program(int, char **, char **);
typedef int starter(program *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

extern int Py_BytesMain(int, char **);

static int python(int argc, char **argv, char **environment)
{
        (void)environment;
        return Py_BytesMain(argc, argv);
}

int __libc_start_main(program *ignored, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*linker_fini)(void), void *stack_end)
{
        starter *start = (starter *)dlsym(RTLD_NEXT, "__libc_start_main");

        (void)ignored;
        if (start == NULL) {
                fputs("main.c: this C library has no __libc_start_main\n", stderr);
                exit(127);
        }
        return start(python, argc, argv, init, fini, linker_fini, stack_end);
}
