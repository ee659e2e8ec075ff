"use strict";
// Heat: attention maps over frames, the proposal map, the probabilities of begin and end.
stvg.maps = {
  STOPS: [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]],

  // Dark violet to light yellow, for a value in [0, 1].
  colour(value) {
    const {STOPS} = stvg.maps, place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(place), STOPS.length - 2), share = place - low;
    return STOPS[low].map((channel, i) => channel + (STOPS[low + 1][i] - channel) * share);
  },

  // A small canvas of one map, `rows` × `columns` values; with `clear` what is cold is transparent.
  picture(values, rows, columns, clear) {
    const canvas = stvg.make("canvas", {width: columns, height: rows}), context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      pixels.data.set([...stvg.maps.colour(values[i]), 255 * (clear ? Math.min(0.85, 0.15 + values[i]) : 1)], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  },

  // One kind of attention: a grey picture, with a line per stored frame, becomes `at(layer, k)`, the values of a map in [0, 1].
  async decoded(map) {
    const image = new Image();
    image.src = map.picture;
    await image.decode();
    const canvas = stvg.make("canvas", {width: image.width, height: image.height}), context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const grey = context.getImageData(0, 0, image.width, image.height).data, cells = map.rows * map.columns;
    return {...map, at: (layer, k) => Float32Array.from({length: cells}, (_, i) => grey[4 * (k * image.width + layer * cells + i)] / 255)};
  },

  // The place in ascending `frames` of the one nearest to `frame`.
  nearest(frames, frame) {
    let best = 0;
    frames.forEach((one, k) => { if (Math.abs(one - frame) < Math.abs(frames[best] - frame)) best = k; });
    return best;
  },

  // One layer's maps as a row of tiles over the segment: each is the stored frame nearest to its middle.
  tiles(canvas, map, layer, frames, [begin, end], aspect) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = 46;
    const count = Math.max(1, Math.min(frames.length, Math.round(width / (height * aspect))));
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    for (let tile = 0; tile < count; tile++) {
      const k = stvg.maps.nearest(frames, begin + (tile + 0.5) / count * (end - begin));
      const left = Math.round(canvas.width * tile / count), right = Math.round(canvas.width * (tile + 1) / count);
      context.drawImage(stvg.maps.picture(map.at(layer, k), map.rows, map.columns, false), left, 0, right - left - ratio, canvas.height);
    }
  },

  // Two curves over the segment: how probable each place is for the event to begin (solid) and to end (dashed).
  curves(canvas, when, [begin, end], colour) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = 56, context = canvas.getContext("2d");
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio; canvas.height = height * ratio;
    context.scale(ratio, ratio);
    const most = Math.max(...when.begins, ...when.ends, 1e-6);
    [[when.begins, 0, []], [when.ends, 1, [4, 3]]].forEach(([values, shift, dash]) => {
      context.beginPath();
      values.forEach((value, i) => context.lineTo((when.edges[i + shift] - begin) / (end - begin) * width, height - 3 - value / most * (height - 8)));
      context.setLineDash(dash);
      for (const [line, style] of [[3.5, "rgba(0,0,0,.55)"], [2, colour]]) { context.lineWidth = line; context.strokeStyle = style; context.stroke(); }
    });
  },

  // The proposal map: a row per begin, a column per end; rings mark the cells of spans. `tell` says what lies under the pointer.
  proposals(canvas, map, segment, spans, tell, go) {
    const count = map.length, side = 660, cell = side / count, [first, last] = segment, frame = place => first + place / count * (last - first);
    const most = Math.max(...map.flat(), 1e-6), values = map.flatMap((row, i) => row.map((value, j) => j < i ? 0 : value / most));
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.fillStyle = "rgba(127,127,127,.18)";
    context.fillRect(0, 0, side, side);
    context.save();
    context.beginPath();
    for (let i = 0; i < count; i++) context.rect(i * cell, i * cell, side - i * cell, cell);
    context.clip();
    context.imageSmoothingEnabled = false;
    context.drawImage(stvg.maps.picture(values, count, count, false), 0, 0, side, side);
    context.restore();
    for (const {span, colour, radius} of spans) {
      const place = edge => (edge - first) / (last - first) * count;
      context.beginPath();
      context.arc((place(span[1]) - 0.5) * cell, (place(span[0]) + 0.5) * cell, radius, 0, 7);
      for (const [line, style] of [[9, "#000"], [5, colour]]) { context.lineWidth = line; context.strokeStyle = style; context.stroke(); }
    }
    const under = event => {
      const box = canvas.getBoundingClientRect();
      const [j, i] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(share => Math.min(count - 1, Math.floor(share * count)));
      return j < i ? null : {begin: Math.round(frame(i)), end: Math.round(frame(j + 1)), score: map[i][j]};
    };
    canvas.addEventListener("mousemove", event => tell(under(event)));
    canvas.addEventListener("mouseleave", () => tell(null));
    canvas.addEventListener("click", event => { const found = under(event); if (found) go(found.begin); });
  },
};
