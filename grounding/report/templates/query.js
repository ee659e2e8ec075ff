"use strict";
// One query: its scores, its video, spans and attention on one axis of time, and the proposal map.
stvg.showQuery = async query => {
  const place = document.getElementById("detail"), turn = stvg.turn = {};
  stvg.player?.stop();
  stvg.player = null;
  if (!query) return;
  try {
    const details = await stvg.details(query.at);
    for (const seen of details.seen) if (seen) seen.decoded ??= await Promise.all(seen.maps.map(stvg.maps.decoded));
    if (stvg.turn === turn) new QueryView(place, query, details).build();  // else another was chosen meanwhile
  } catch (error) {
    if (stvg.turn === turn) place.replaceChildren(stvg.make("p", {class: "trouble"}, String(error.message)));
  }
};

class QueryView {
  constructor(place, query, details) {
    Object.assign(this, {place, query, details, segment: query.segment});
    this.seen = details.seen.map(one => one ?? null);
    this.tubes = [{name: "truth", kind: "truth", colour: stvg.colours.truth, span: query.truth, boxes: details.truth, held: false, width: 5, shown: true}];
    stvg.runs.forEach((name, run) => this.tubes.push({name, kind: `run${run}`, colour: stvg.colours.runs[run], span: query.spans[run],
      boxes: details.answers[run]?.boxes ?? [], held: true, width: 2.5, shown: true}));
  }

  build() {
    const {make} = stvg;
    const facts = make("p", {class: "facts"}), close = make("button", {class: "close", type: "button", title: "back to the list"}, "✕");
    close.addEventListener("click", () => { location.hash = "#queries"; });
    for (const word of [this.query.form, ...this.query.tags]) if (word) facts.append(make("span", {class: "tag"}, word));
    facts.append(make("span", {}, this.query.id), make("span", {}, this.query.path));
    this.screen = make("div", {class: "screen"});
    this.controls = make("div", {class: "controls"});
    this.lanes = make("div", {class: "card lanes"});
    const side = make("div", {class: "side"}, this.scores(), ...this.proposalMaps());
    this.place.replaceChildren(make("div", {class: "top"}, make("div", {}, make("h2", {}, this.query.text), facts), close),
      make("div", {class: "stage"}, make("div", {}, this.screen, this.controls, this.lanes), side));
    this.fillLanes();
    this.openVideo();
    window.scrollTo(0, 0);
  }

  openVideo() {
    const {make} = stvg, record = stvg.videos[this.query.video], [width, height] = this.details.size;
    if (record.trouble) return this.screen.replaceWith(make("p", {class: "trouble"}, `No video: ${record.trouble}`));
    this.screen.style.maxWidth = `calc(62vh * ${width / height})`;
    this.player = stvg.player = new stvg.Player(this.screen, record, this.details.size, this.segment, this.tubes, frame => this.onFrame(frame));
    this.fillControls();
    this.player.seek(Math.min(...this.tubes.filter(tube => tube.span).map(tube => tube.span[0]), this.segment[1] - 1));
  }

  fillControls() {
    const {make} = stvg, {player} = this, button = (name, title, act) => {
      const made = make("button", {type: "button", title}, name);
      made.addEventListener("click", act);
      return made;
    };
    const play = button("▶ play", "space", () => player.toggle());
    play.className = "play";
    player.video.addEventListener("play", () => { play.textContent = "❚❚ pause"; });
    player.video.addEventListener("pause", () => { play.textContent = "▶ play"; });
    const speed = make("select", {title: "speed", "aria-label": "Speed"}, ...[0.25, 0.5, 1, 2].map(rate => make("option", {value: rate, selected: rate === 1}, `${rate}×`)));
    speed.addEventListener("change", () => { player.video.playbackRate = Number(speed.value); });
    this.clock = make("output");
    this.controls.append(play, button("−1", "one frame back: ←", () => player.step(-1)), button("+1", "one frame on: →", () => player.step(1)), speed, this.clock);
    for (const tube of this.tubes.filter(one => one.span)) {
      const box = make("input", {type: "checkbox", checked: true});
      box.addEventListener("change", () => { tube.shown = box.checked; player.draw(); });
      this.controls.append(make("label", {}, box, stvg.swatch(tube.kind), tube.name));
    }
    const kinds = this.seen.flatMap((seen, run) => (seen?.decoded ?? []).flatMap(map => Array.from({length: map.layers}, (_, layer) => ({seen, run, map, layer}))));
    if (!kinds.length) return;
    const heat = make("select", {title: "heat over the video", "aria-label": "Heat"}, make("option", {value: ""}, "no heat"),
      ...kinds.map(({run, map, layer}, at) => make("option", {value: at}, `${this.label(run)}${map.about}, layer ${layer + 1}`)));
    heat.addEventListener("change", () => {
      const kind = kinds[heat.value];
      player.heat = kind ? frame => stvg.maps.picture(kind.map.at(kind.layer, stvg.maps.nearest(kind.seen.frames, frame)), kind.map.rows, kind.map.columns, true) : null;
      player.draw();
    });
    this.controls.append(heat);
  }

  label(run) { return stvg.runs.length > 1 ? `${stvg.runs[run]}: ` : ""; }

  // Bars of the spans, then what the networks saw; all share the axis of time that a click seeks on.
  fillLanes() {
    const {make} = stvg, [begin, end] = this.segment, later = [];
    for (const {name, span, kind, colour} of this.tubes) {
      const lane = make("div", {class: "lane"});
      if (span) {
        const [low, high] = span.map(edge => 100 * (Math.min(Math.max(edge, begin), end) - begin) / (end - begin));
        const bar = make("i", {class: kind});
        Object.assign(bar.style, {left: `${low}%`, width: `${high - low}%`, background: colour});
        lane.append(bar);
      }
      this.lanes.append(make("span", {title: name}, name), lane, make("span", {class: "edge", title: "frames"}, span ? `[${span[0]}, ${span[1]})` : kind === "truth" ? "not known" : "none"));
    }
    const canvas = name => { const made = make("canvas"); this.lanes.append(make("span", {}, name), made); return made; };
    this.seen.forEach((seen, run) => {
      if (!seen) return;
      const aspect = this.details.size[0] / this.details.size[1];
      if (seen.when.begins) {
        this.lanes.append(make("span", {class: "group"}, `${this.label(run)}how probable the event's begin (solid) and end (dashed) are`));
        const drawn = canvas("");
        later.push(() => stvg.maps.curves(drawn, seen.when, this.segment, stvg.colours.runs[run]));
      }
      for (const map of seen.decoded) {
        this.lanes.append(make("span", {class: "group"}, `${this.label(run)}${map.about}`));
        for (let layer = 0; layer < map.layers; layer++) {
          const drawn = canvas(`layer ${layer + 1}`);
          later.push(() => stvg.maps.tiles(drawn, map, layer, seen.frames, this.segment, aspect));
        }
      }
    });
    this.head = make("div", {class: "head"});
    this.lanes.append(this.head);
    later.forEach(draw => draw());
    const seek = event => {
      const axis = this.axis(), share = (event.clientX - axis.left) / axis.width;
      if (this.player && share >= 0 && share <= 1) this.player.seek(begin + Math.floor(share * (end - begin)));
    };
    this.lanes.addEventListener("pointerdown", event => { this.player?.video.pause(); this.lanes.setPointerCapture(event.pointerId); seek(event); });
    this.lanes.addEventListener("pointermove", event => { if (event.buttons) seek(event); });
  }

  axis() { return this.lanes.querySelector(".lane").getBoundingClientRect(); }

  onFrame(frame) {
    const [begin, end] = this.segment, axis = this.axis(), left = this.lanes.getBoundingClientRect().left;
    this.head.style.left = `${axis.left - left + axis.width * (frame + 0.5 - begin) / (end - begin)}px`;
    this.clock.textContent = `frame ${frame} · ${(this.player.start(frame)).toFixed(2)} s`;
  }

  scores() {
    const {make, number} = stvg, several = stvg.runs.length > 1;
    const rows = stvg.runs.map((name, run) => make("tr", {}, make("th", {title: name}, stvg.swatch(`run${run}`), name), ...this.query.scores[run].map(value => make("td", {}, number(value))),
      make("td", {title: "the run's own confidence"}, number(this.details.answers[run]?.score))));
    if (several) {
      const gains = this.query.scores[0].map((value, i) => value === null ? null : value - this.query.scores[1][i]);
      rows.push(make("tr", {}, make("th", {}, "difference"), ...gains.map(gain => make("td", {class: stvg.sign(gain)}, stvg.signed(gain))), make("td", {}, "")));
    }
    const head = make("tr", {}, ...["", "vIoU", "tIoU", "sIoU", "score"].map(name => make("th", {title: stvg.MEANING[name]}, name)));
    return make("div", {class: "card"}, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  proposalMaps() {
    const {make} = stvg;
    return this.seen.flatMap((seen, run) => {
      if (!seen?.when.map) return [];
      const canvas = make("canvas"), words = make("p"), own = [this.tubes[0], this.tubes[run + 1]].filter(tube => tube.span);
      const tell = found => { words.textContent = found ? `frames [${found.begin}, ${found.end}): ${found.score.toFixed(3)}` : `down: when it begins; across: when it ends; light: likely; rings: ${own.map(tube => tube.name).join(", ")}`; };
      tell(null);
      stvg.maps.proposals(canvas, seen.when.map, this.segment, own.map(({span, colour}, i) => ({span, colour, radius: 15 - 6 * i})), tell, frame => this.player?.seek(frame));
      return [make("div", {class: "card map"}, make("h3", {}, `${this.label(run)}the score of every span`), canvas, words)];
    });
  }
}

document.addEventListener("keydown", event => {
  if (!stvg.player || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches(event.key === " " ? "input, select, button, a" : "input[type=search], select")) return;
  const act = {" ": () => stvg.player.toggle(), ArrowLeft: () => stvg.player.step(-1), ArrowRight: () => stvg.player.step(1), Escape: () => { location.hash = "#queries"; }}[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
