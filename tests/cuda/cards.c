/* Cards that are not there, for a llama-fit-params that only measures: preloaded, it answers what the CUDA backend asks the runtime
 * while it reads headers and reserves graphs. No kernel can run on them and nothing can be stored there. What is not answered
 * here reaches the real runtime, which fails without a driver, and the engine then ends with the name of that call.
 *
 * CARDS_MIB: the cards' memory in whole MiB, with commas between; empty for no card.
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local int current;
static char something; /* what handles point to; nobody looks */

/* The bytes of a card, 0 where there is no such card. */
static size_t bytes_of(int card) {
    const char *rest = getenv("CARDS_MIB");
    for (; rest && *rest; rest = strchr(rest, ',') ? strchr(rest, ',') + 1 : "")
        if (card-- == 0)
            return strtoull(rest, NULL, 10) << 20;
    return 0;
}

cudaError_t cudaGetDeviceCount(int *count) {
    for (*count = 0; bytes_of(*count);)
        ++*count;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int card) {
    if (!bytes_of(card))
        return cudaErrorInvalidDevice;
    current = card;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *card) {
    *card = current;
    return cudaSuccess;
}

/* An RTX 4090 but for its memory, whatever its memory: what decides over graphs and buffers is the same from there to the H800. */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *of, int card) {
    if (!bytes_of(card))
        return cudaErrorInvalidDevice;
    memset(of, 0, sizeof *of);
    strcpy(of->name, "made-up card");
    of->totalGlobalMem = bytes_of(card);
    of->major = 8;
    of->minor = 9;
    of->multiProcessorCount = 128;
    of->warpSize = 32;
    of->sharedMemPerBlock = 48 << 10;
    of->sharedMemPerBlockOptin = 99 << 10;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int card) {
    if (attribute != cudaDevAttrCooperativeLaunch || !bytes_of(card))
        return cudaErrorInvalidValue;
    *value = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int card) {
    snprintf(id, size, "0000:%02x:00.0", card + 1);
    return cudaSuccess;
}

/* All of it is free. */
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = *total = bytes_of(current);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    *stream = (cudaStream_t)&something;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    *event = (cudaEvent_t)&something;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return cudaSuccess;
}
