"use strict";
// The page's data and views. What comes from data is only ever put in as text, never as HTML.
const stvg = {
  colours: {truth: "#2ecc71", runs: ["#ffd60a", "#ff5fd2"]},
  views: ["summary", "gallery", "queries", "training"],
  MEANING: {vIoU: "overlap of the tubes: of their boxes, over the union of the spans", tIoU: "overlap of the spans",
    sIoU: "overlap of the boxes, over the true span", score: "the run's own confidence", difference: "vIoU of the first run minus that of the other"},
  waiting: new Map(),
  known: new Map(),

  // data.js: the runs' names, the videos, the list of queries. `at`: their place, which names their file and their link.
  start(data) {
    Object.assign(stvg, data);
    stvg.queries.forEach((query, at) => { query.at = at; });
    for (const facts of document.querySelectorAll("[data-query]")) stvg.fillFacts(facts, stvg.queries[facts.dataset.query]);
    const header = document.querySelector("header");
    new ResizeObserver(() => document.documentElement.style.setProperty("--head", `${header.offsetHeight}px`)).observe(header);
    stvg.list.start();
    window.addEventListener("hashchange", stvg.route);
    stvg.route();
  },

  // queries/<at>.js: the details of one query.
  take(at, details) {
    stvg.known.set(at, details);
    stvg.waiting.get(at)?.resolve(details);
  },

  details(at) {
    if (stvg.known.has(at)) return Promise.resolve(stvg.known.get(at));
    if (!stvg.waiting.has(at)) {
      const waiting = {};
      waiting.promise = new Promise((resolve, reject) => Object.assign(waiting, {resolve, reject}));
      stvg.waiting.set(at, waiting);
      const script = stvg.make("script", {src: `queries/${at}.js`});
      script.addEventListener("error", () => { stvg.waiting.delete(at); waiting.reject(new Error(`queries/${at}.js cannot be read`)); });
      document.head.append(script);
    }
    return stvg.waiting.get(at).promise;
  },

  // #gallery shows a view, #queries/7 a query.
  route() {
    const [name, at] = location.hash.slice(1).split("/");
    const view = stvg.views.includes(name) ? name : stvg.views[0];
    for (const other of stvg.views) document.getElementById(`view-${other}`).hidden = other !== view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    const query = view === "queries" && at !== undefined ? stvg.queries[at] : undefined;
    document.getElementById("detail").hidden = !query;
    document.querySelector(".panes").classList.toggle("open", Boolean(query));  // first: it moves the rows
    stvg.list.select(query);
    stvg.showQuery(query);
    if (view !== "queries") window.scrollTo(0, 0);
  },

  make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === false || value === undefined) continue;
      element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  },

  number: value => value === null || value === undefined ? "–" : value.toFixed(3),
  signed: value => value === null ? "–" : (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(3),
  sign: value => value > 0 ? "up" : value < 0 ? "down" : "",
  swatch: kind => stvg.make("i", {class: `swatch ${kind}`}),

  // What ranks queries: vIoU, or tIoU where none has boxes.
  value: (query, run = 0) => query.scores[run][0] ?? query.scores[run][1],
  gain: query => query.scores.length > 1 ? stvg.value(query) - stvg.value(query, 1) : null,

  fillFacts(place, query) {
    const {make, number} = stvg;
    query.scores.forEach(([v, t, s], run) => {
      const several = query.scores.length > 1;
      place.append(make("span", {}, ...(several ? [stvg.swatch(`run${run}`), `${stvg.runs[run]} `] : []),
        "vIoU ", make("b", {}, number(v)), " tIoU ", make("b", {}, number(t)), " sIoU ", make("b", {}, number(s))));
      if (!query.spans[run]) place.append(make("span", {class: "tag bad"}, several ? `no prediction of ${stvg.runs[run]}` : "no prediction"));
    });
    if (query.scores.length > 1) place.append(make("b", {class: stvg.sign(stvg.gain(query))}, stvg.signed(stvg.gain(query))));
    for (const word of [query.form, ...query.tags]) if (word) place.append(make("span", {class: "tag"}, word));
    place.append(make("span", {}, query.id), make("span", {}, query.path));
  },
};
