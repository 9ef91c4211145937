/* The threads of this process, as the kernel sees them. */
#ifndef TASKS_H
#define TASKS_H

#include "check.h"

#include <dirent.h>

/* Calls look(name, blocked signals) for every thread whose name begins with "vms-"; answers their number. */
static inline int library_threads(void (*look)(const char *name, unsigned long long blocked))
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    int count = 0;

    CHECK(tasks);
    while ((task = readdir(tasks))) {
        char path[300], line[256], name[64] = "";
        unsigned long long blocked = 0;
        FILE *status;
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        status = fopen(path, "r");
        if (!status) /* ended meanwhile */
            continue;
        while (fgets(line, sizeof line, status)) {
            sscanf(line, "Name: %63s", name);
            sscanf(line, "SigBlk: %llx", &blocked);
        }
        fclose(status);
        if (strncmp(name, "vms-", 4) == 0) {
            count++;
            if (look)
                look(name, blocked);
        }
    }
    closedir(tasks);
    return count;
}

/* Number of all threads. */
static inline int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    int count = 0;

    CHECK(tasks);
    while ((task = readdir(tasks)))
        count += task->d_name[0] != '.';
    closedir(tasks);
    return count;
}

#endif
