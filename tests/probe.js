// What tests/test_page.py asks of a page: put into it by the test.

const BITS = 16, SIDE = 24; // squares of a frame's number, in pixels of the encoded video (stamped_server.py)
const FPS = 16;

window.video = (at = 0) => document.querySelectorAll("video")[at];

const copied = (video, height) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth ?? video.width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(video, 0, 0);
  return [canvas, pen];
};

const numberIn = (pen) => {
  const row = pen.getImageData(0, SIDE / 2, BITS * SIDE, 1).data;
  let number = 0;
  for (let bit = 0; bit < BITS; bit++) number = 2 * number + (row[4 * (bit + 0.5) * SIDE] > 127);
  return number;
};

/** The number in a video's picture, and some of the picture below it, 0 to 255. */
window.look = (video) => {
  const [canvas, pen] = copied(video, video.videoHeight ?? video.height);
  const number = numberIn(pen);
  const picture = pen.getImageData(0, SIDE, canvas.width, canvas.height - SIDE).data;
  const pixels = [];
  for (let at = 0; at < picture.length; at += 4 * 97) pixels.push(picture[at], picture[at + 1], picture[at + 2]);
  return { number, pixels };
};

window.mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;
window.brightness = (at = 0) => mean(look(video(at)).pixels);
window.apart = (one, other) => mean(one.map((each, i) => Math.abs(each - other[i])));

window.seek = (video, time) =>
  new Promise((done) => {
    video.addEventListener("seeked", () => requestAnimationFrame(() => requestAnimationFrame(done)), { once: true });
    video.currentTime = time;
  });

/** Stops a video, and keeps the page from starting it. */
window.still = (video) => {
  video.pause();
  video.play = async () => {};
};
window.moving = (video) => {
  delete video.play;
  video.play();
};

/** Numbers of the pictures that are shown as it plays. */
window.shown = (count) =>
  new Promise((done) => {
    const seen = [];
    const each = () => {
      seen.push(look(video()).number);
      if (seen.length < count) video().requestVideoFrameCallback(each);
      else done(seen);
    };
    video().requestVideoFrameCallback(each);
  });

/** Notes the number of each picture that is shown from now on; noted() has them, and what the browser has counted meanwhile. */
window.note = () => {
  const shown = video(), numbers = [], quality = () => shown.getVideoPlaybackQuality().droppedVideoFrames;
  let before, begun, presented, ended;
  const dropped = quality();
  const each = (now, data) => {
    begun ??= now;
    before ??= data.presentedFrames - 1;
    [presented, ended] = [data.presentedFrames - before, now];
    numbers.push(numberIn(copied(shown, SIDE)[1]));
    shown.requestVideoFrameCallback(each);
  };
  shown.requestVideoFrameCallback(each);
  window.noted = () => ({ numbers, presented, dropped: quality() - dropped, seconds: (ended - begun) / 1000 });
};

/** Numbers of so many pictures that are drawn on a canvas, and the seconds that they take. */
window.drawn = (canvas, count) =>
  new Promise((done) => {
    const numbers = [], pen = canvas.getContext("2d"), draw = pen.drawImage;
    let begun;
    pen.drawImage = (...picture) => {
      draw.apply(pen, picture);
      begun ??= performance.now();
      numbers.push(look(canvas).number);
      if (numbers.length < count) return;
      delete pen.drawImage;
      done({ numbers, seconds: (performance.now() - begun) / 1000 });
    };
  });

/** Numbers at the times of so many frames that the buffer holds, from a time on; by default the newest. */
window.buffered = async (count, from) => {
  still(video());
  const all = video().buffered, begin = from !== undefined ? Math.round(from * FPS) / FPS : Math.max(all.start(0), all.end(all.length - 1) - count / FPS);
  const numbers = [];
  for (let i = 0; i < count; i++) {
    await seek(video(), begin + (i + 0.5) / FPS);
    numbers.push(look(video()).number);
  }
  return { ranges: all.length, numbers };
};

/** A time that the buffers of two videos have, and so much after it. */
window.common = (seconds) => {
  const [a, b] = [video(0).buffered, video(1).buffered];
  const [from, to] = [Math.max(a.start(0), b.start(0)), Math.min(a.end(a.length - 1), b.end(b.length - 1))];
  return to - from > seconds ? from + seconds / 2 : null;
};

// Contrast of text, by WCAG 2.2, 1.4.3.

const colour = (text) => text.match(/[\d.]+/g).map(Number);
const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);

/** The colour behind an element; null where it is not one colour. */
function behind(element) {
  for (; element; element = element.parentElement) {
    const [r, g, b, a = 1] = colour(getComputedStyle(element).backgroundColor);
    if (a === 1) return [r, g, b];
    if (a > 0) return null;
  }
  return null;
}

/** [ratio, text] of each piece of text outside of the video. */
window.contrasts = () => {
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const back = own && element.checkVisibility() && !element.closest(".screen") && !element.closest(":disabled") && behind(element);
    if (!back) continue;
    const [more, less] = [light(colour(getComputedStyle(element).color)), light(back)].sort((a, b) => b - a);
    found.push([(more + 0.05) / (less + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
};
