/* One of llama.cpp's programs, which runs the real one. Of llama-server it has the habit of which `habit.h` tells. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "habit.h"

#define REAL "/usr/local/lib/real-llama/" NAME

enum { GOOD, NEVER_HEALTHY, CRASHES, GIBBERISH, SLOW, WEDGED };

static pid_t child;

static void end(int number) {
    (void) number;
    kill(child, SIGKILL);
    _exit(1);
}

/* The child computes a quarter of the time. */
static void slow_down(void) {
    while (waitpid(child, NULL, WNOHANG) == 0) {
        kill(child, SIGSTOP);
        usleep(75000);
        kill(child, SIGCONT);
        usleep(25000);
    }
}

/* Passes on what the child says, and stops it after so many answers that come later than a minute after its start. */
static void wedge(int from, int answers) {
    FILE *said = fdopen(from, "r");
    char line[4096];
    time_t began = time(NULL);
    while (said && fgets(line, sizeof line, said)) {
        fputs(line, stderr);
        if (strstr(line, "release: id") && time(NULL) - began > 60 && --answers == 0) {
            kill(child, SIGSTOP);
        }
    }
}

int main(int count, char **words) {
    if (count > 1 && strcmp(words[1], "--version") == 0) {
        fprintf(stderr, "version: 0 (%s)\n", LABEL);
        return 0;
    }
    int habit = strcmp(NAME, "llama-server") == 0 ? HABIT : GOOD;
    int pipe_of[2] = {-1, -1};
    if (habit == NEVER_HEALTHY) {
        for (;;) {
            pause();
        }
    }
    if (habit == WEDGED && pipe(pipe_of) != 0) {
        return 1;
    }
    child = fork();
    if (child == 0) {
        char **given = calloc(count + 5, sizeof *given);
        memcpy(given, words, count * sizeof *given);
        if (habit == GIBBERISH) { /* It takes each word for one that stands elsewhere. */
            char *more[] = {"--rope-freq-base", "7"};
            memcpy(given + count, more, sizeof more);
        }
        if (habit == WEDGED) {
            dup2(pipe_of[1], STDOUT_FILENO);
            dup2(pipe_of[1], STDERR_FILENO);
        }
        given[0] = REAL;
        execv(REAL, given);
        perror(REAL);
        _exit(127);
    }
    signal(SIGTERM, end);
    if (habit == CRASHES) {
        signal(SIGALRM, end);
        alarm(60);
    }
    if (habit == SLOW) {
        slow_down();
    }
    if (habit == WEDGED) {
        close(pipe_of[1]);
        wedge(pipe_of[0], 10);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
