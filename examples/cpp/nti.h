/* Null-text inversion and Prompt-to-Prompt edits without Python: the C interface.
 *
 * A folder of `nti export` holds the graphs and the weights, a file of `nti plan` the words. The
 * folder is exported for one image size, one image at once (--batch 1) and E edits at once.
 *
 * Ownership: `nti_open` makes the handle and `nti_close` frees it; every other pointer belongs to
 * the caller and is not kept. Threads: a handle serves one thread at a time; there is no state
 * outside of handles. Files are mapped into memory: none may be changed in place while a call reads
 * it. The folder has to stay as it is, and where it is, until `nti_close`. Paths and text are UTF-8.
 */
#ifndef NTI_H
#define NTI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nti_model nti_model;

typedef enum {
  NTI_OK = 0,
  NTI_REFUSED = 1, /* a file or an argument that does not fit; nothing was written */
  NTI_FAILED = 2   /* anything else: reading, writing, the runtime */
} nti_status;

/* Called after each timestep; a value other than 0 ends the run with NTI_FAILED. It must not throw. */
typedef int (*nti_progress)(void* user, int done, int total);

/* Load a folder; onnxruntime loads a graph when it is first called. `threads` is the number that one
 * call may use; on libtorch it becomes that of the thread that calls. `*model` is set even where it
 * fails, for `nti_last_error`: close it all the same. */
nti_status nti_open(const char* folder, int threads, nti_model** model);
void nti_close(nti_model* model);

/* What went wrong in the handle's last call, "" where nothing did. It lives until the next call. */
const char* nti_last_error(const nti_model* model);

/* Pixels of an image, and how many edits a plan must have. */
nti_status nti_size(nti_model* model, int* width, int* height, int* edits);

/* Invert an image, height x width x 3 bytes of sRGB, whose prompt is the plan's source, and save it
 * as a file that `nti` reads. `image_sha256` is the SHA-256 of the image's file in hex, or NULL. */
nti_status nti_invert(nti_model* model, const char* plan, const uint8_t* pixels,
                      const char* image_sha256, const char* inversion, nti_progress progress,
                      void* user);

/* Sample an inversion again; `plan` is one of its prompt, `pixels` receives height x width x 3
 * bytes. */
nti_status nti_reconstruct(nti_model* model, const char* inversion, const char* plan,
                           uint8_t* pixels, nti_progress progress, void* user);

/* Edit an inversion as planned; `pixels` receives E pictures, one after the other. */
nti_status nti_edit(nti_model* model, const char* inversion, const char* plan, uint8_t* pixels,
                    nti_progress progress, void* user);

#ifdef __cplusplus
}
#endif
#endif
