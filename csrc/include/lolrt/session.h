/* Streams of a whole model in C: liblolrt_session, on libtorch.
 *
 * A *package* is a folder that lolrt.aot.package compiled from a model with AOTInductor, by the torch whose libtorch is linked
 * here. A *session* is one endless stream of it: the model, its KV cache, the decoder, and the state between chunks. There is no
 * Python in it; the latents and frames have the bits of Python's streams, on the same machine with as many threads of torch.
 *
 * Every call returns a status; on failure `lolrt_session_last_error()` says what was wrong, what was expected and what to do. A
 * call that fails leaves the session as it was, unless it says otherwise. A session is used from one thread at a time.
 */
#ifndef LOLRT_SESSION_H
#define LOLRT_SESSION_H

#include "lolrt/lolrt.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lolrt_session lolrt_session;

/* A few latent frames that were denoised together, and their video. Borrowed: valid until the next call with the session. */
typedef struct lolrt_chunk {
  int64_t first_frame;  /* latent frames since the start */
  lolrt_tensor latents; /* float32 [latent frames, channels, rows, columns], normalised */
  lolrt_tensor frames;  /* uint8 [frames, height, width, 3], RGB */
} lolrt_chunk;

/* Text of the calling thread's last failure; valid until its next failing call. Never NULL. */
LOLRT_API const char *lolrt_session_last_error(void);

/* Opens a stream. package: the path of the folder. prompt: float32 [text tokens, text_dim] on the CPU, embeddings of the model's
 * text encoder, as lolrt's Pipeline.encode_text gives them. seed: of the noise. */
LOLRT_API lolrt_status lolrt_session_open(const char *package, const lolrt_tensor *prompt, uint64_t seed,
                                          lolrt_session **session);
LOLRT_API void lolrt_session_close(lolrt_session *session);

/* Makes the next chunk. If this fails, the next call makes the same chunk; but after a failure in its decoder, no call does. */
LOLRT_API lolrt_status lolrt_session_next_chunk(lolrt_session *session, lolrt_chunk *chunk);

/* Which cached frames are run again with a new text: all but the sinks, all, or none. */
typedef enum lolrt_recache { LOLRT_RECACHE_WINDOW = 0, LOLRT_RECACHE_SINKS = 1, LOLRT_RECACHE_NONE = 2 } lolrt_recache;

/* Follows another text from the next chunk on. over_chunks: the new text takes over in equal steps over so many chunks; 1: at
 * once. */
LOLRT_API lolrt_status lolrt_session_set_prompt(lolrt_session *session, const lolrt_tensor *prompt, lolrt_recache recache,
                                                int64_t over_chunks);

/* Writes a snapshot of the stream between two chunks, as Python's Stream.save does: `pipe.resume(path)` goes on from it with the
 * same bits. The file is the old one or the new one, whatever happens meanwhile. */
LOLRT_API lolrt_status lolrt_session_save(const lolrt_session *session, const char *path);
/* Goes on from a full snapshot of a stream of this package, whichever of the two has saved it. Fails for one of another model or
 * with other settings, and says what differs. */
LOLRT_API lolrt_status lolrt_session_resume(const char *package, const char *snapshot, lolrt_session **session);

#ifdef __cplusplus
}
#endif

#endif /* LOLRT_SESSION_H */
