"use strict";
// A video that plays within a segment, with tubes and heat drawn over it in step. Frames are numbered as in the original video.
class Player {
  // `tubes`: {colour, span, boxes, held, width, shown}; a held tube has a box in every frame of its span, between and beyond its samples.
  constructor(screen, record, size, segment, tubes, onFrame) {
    Object.assign(this, {screen, record, size, segment, tubes, onFrame, heat: null, frame: segment[0]});
    screen.style.aspectRatio = `${size[0]} / ${size[1]}`;
    this.video = stvg.make("video", {src: record.file, muted: true, playsinline: true, preload: "auto"});
    this.video.muted = true;
    this.canvas = stvg.make("canvas");
    screen.append(this.video, this.canvas);
    this.video.addEventListener("loadedmetadata", () => this.seek(this.frame));
    if ("requestVideoFrameCallback" in this.video) {
      const step = (_, facts) => { if (!this.video.seeking) this.show(this.frameAt(facts.mediaTime)); if (this.alive) this.video.requestVideoFrameCallback(step); };
      this.video.requestVideoFrameCallback(step);
    } else {
      for (const event of ["timeupdate", "seeked"]) this.video.addEventListener(event, () => this.show(this.frameAt(this.video.currentTime)));
    }
    this.alive = true;
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(screen);
  }

  stop() {
    this.alive = false;
    this.watch.disconnect();
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  // Seconds in the file at which a frame begins.
  start(frame) {
    const {first, count, length, starts} = this.record, place = Math.min(Math.max(frame - first, 0), count);
    return place === count ? length : starts ? starts[place] : place * length / count;
  }

  frameAt(seconds) {
    const {first, count, length, starts} = this.record;
    let place = Math.floor((seconds + 5e-4) * count / length);
    if (starts) for (place = 0; place + 1 < count && starts[place + 1] <= seconds + 5e-4;) place++;
    return first + Math.min(Math.max(place, 0), count - 1);
  }

  // To the middle of the frame's time: at its very begin a browser may show the one before.
  seek(frame) {
    const [begin, end] = this.segment, wanted = Math.min(Math.max(Math.round(frame), begin), end - 1);
    this.video.currentTime = (this.start(wanted) + this.start(wanted + 1)) / 2;
    this.show(wanted);
  }

  step(by) {
    this.video.pause();
    this.seek(this.frame + by);
  }

  toggle() {
    if (!this.video.paused) return this.video.pause();
    if (this.frame >= this.segment[1] - 1) this.seek(this.segment[0]);
    this.video.play();
  }

  show(frame) {
    const [begin, end] = this.segment;
    if (frame >= end - 1 && !this.video.paused) this.video.pause();
    this.frame = Math.min(Math.max(frame, begin), end - 1);
    this.draw();
    this.onFrame(this.frame);
  }

  boxOf(tube) {
    if (!tube.shown || !tube.span || !tube.boxes.length || this.frame < tube.span[0] || this.frame >= tube.span[1]) return null;
    const after = tube.boxes.findIndex(row => row[0] >= this.frame), rows = tube.boxes;
    if (after >= 0 && rows[after][0] === this.frame) return rows[after].slice(1);
    if (!tube.held) return null;
    if (after <= 0) return (after ? rows[rows.length - 1] : rows[0]).slice(1);
    const [low, high] = [rows[after - 1], rows[after]], share = (this.frame - low[0]) / (high[0] - low[0]);
    return low.slice(1).map((side, i) => side + (high[i + 1] - side) * share);
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, {clientWidth: width, clientHeight: height} = this.screen, {canvas} = this;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (this.heat) pen.drawImage(this.heat(this.frame), 0, 0, width, height);
    for (const tube of this.tubes) {
      const box = this.boxOf(tube);
      if (!box) continue;
      const [x1, y1, x2, y2] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height].map((side, i) => side / this.size[i % 2]);
      for (const [line, style] of [[tube.width + 2, "rgba(0,0,0,.6)"], [tube.width, tube.colour]]) {
        pen.lineWidth = line; pen.strokeStyle = style;
        pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
    }
  }
}
stvg.Player = Player;
