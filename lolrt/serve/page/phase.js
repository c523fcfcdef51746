// The phase kernel: the mean over heads and pairs of cos(radians * frame). It is 1 at the sinks, and where it comes up again the phases of
// all heads agree once more, and the picture tends to fall back to its first frames (arXiv 2601.16914).

// It starts at 1 and falls for about a hundred frames; only what comes after is a return.
const AFTER_FRAMES = 100;
// Plain RoPE passes this at 17 of its first 20,000 frames, 132 and 201 among them.
const RETURN = 0.45;
// One of several maxima so close together is named, the highest.
const APART_FRAMES = 24;

export class PhaseKernel {
  /** radians: [heads][pairs], per latent frame. */
  constructor(radians) {
    this.radians = radians.flat();
    this.known = new Map();
  }

  at(frame) {
    if (!this.known.has(frame)) {
      if (this.known.size > 5000) this.known.clear();
      this.known.set(frame, this.radians.reduce((sum, each) => sum + Math.cos(each * frame), 0) / this.radians.length);
    }
    return this.known.get(frame);
  }

  /** Frames from one to another at which it has a maximum that is a return. */
  returns(from, to) {
    const found = [];
    for (let frame = Math.max(from, AFTER_FRAMES + 1); frame <= to; frame++) {
      const here = this.at(frame);
      if (here > RETURN && this.highest(frame, here)) found.push(frame);
    }
    return found;
  }

  highest(frame, here) {
    for (let other = frame - APART_FRAMES; other <= frame + APART_FRAMES; other++) if (this.at(other) > here) return false;
    return true;
  }
}
