"use strict";
// The list of queries: searched, filtered, sorted. Rows are made as they scroll into view.
stvg.list = {
  CHUNK: 80,
  sort: "vIoU",
  down: true,

  start() {
    const {make} = stvg, list = stvg.list;
    list.body = document.querySelector("#queries tbody");
    list.search = document.getElementById("search");
    list.filters = {form: document.getElementById("form"), tags: document.getElementById("tag")};
    list.words = stvg.queries.map(query => [query.text, query.id, query.path, query.form, ...query.tags].join("\n").toLowerCase());
    list.columns = list.allColumns();
    const row = document.querySelector("#queries thead tr");
    for (const column of list.columns) {
      const button = make("button", {type: "button"}, column.name);
      button.addEventListener("click", () => list.sortBy(column));
      row.append(make("th", {class: column.style, "data-column": column.name}, button));
    }
    list.fillFilter("form", "all forms", stvg.queries.map(query => query.form));
    list.fillFilter("tags", "all tags", stvg.queries.flatMap(query => query.tags));
    list.search.addEventListener("input", list.refresh);
    for (const filter of Object.values(list.filters)) filter.addEventListener("change", list.refresh);
    list.body.addEventListener("click", event => {
      const line = event.target.closest("tr");
      if (line) location.hash = `#queries/${line.dataset.at}`;
    });
    const rows = document.querySelector(".rows");
    new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) list.more(); }, {root: rows, rootMargin: "400px"})
      .observe(document.getElementById("more"));
    document.addEventListener("keydown", list.step);
    list.refresh();
  },

  // Each column: its name, what sorts by it, and its cell.
  allColumns() {
    const {make, number} = stvg;
    const score = (name, place, style) => ({name, style, value: query => query.scores[0][place], cell: query => [number(query.scores[0][place])]});
    const columns = [
      {name: "query", style: "words", value: query => query.text, cell: query => [
        make("a", {href: `#queries/${query.at}`}, query.text),
        make("small", {}, query.id, ...(query.spans[0] ? [] : [" ", make("span", {class: "tag bad"}, "no prediction")]))]},
      {name: "form", style: "words extra", value: query => query.form, cell: query => [query.form]},
      {name: "tags", style: "words extra", value: query => query.tags.join(" "),
        cell: query => query.tags.flatMap(tag => [make("span", {class: "tag"}, tag), " "])},
      score("vIoU", 0, ""), score("tIoU", 1, ""), score("sIoU", 2, "extra"),
    ];
    if (stvg.runs.length > 1) {
      columns.push({name: `vIoU of ${stvg.runs[1]}`, style: "extra", value: query => stvg.value(query, 1), cell: query => [number(stvg.value(query, 1))]});
      columns.push({name: "difference", style: "", value: stvg.gain,
        cell: query => [make("span", {class: stvg.sign(stvg.gain(query))}, stvg.signed(stvg.gain(query)))]});
    }
    return columns;
  },

  fillFilter(name, all, values) {
    const counts = new Map();
    for (const value of values) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    const select = stvg.list.filters[name];
    select.append(stvg.make("option", {value: ""}, all));
    for (const [value, count] of [...counts].sort()) select.append(stvg.make("option", {value}, `${value} (${count})`));
    select.hidden = counts.size === 0;
  },

  sortBy(column) {
    const list = stvg.list;
    list.down = column.name === list.sort ? !list.down : !column.style.includes("words");
    list.sort = column.name;
    list.refresh();
  },

  // Search, filter and sort; then show the first rows.
  refresh() {
    const list = stvg.list, wanted = list.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const form = list.filters.form.value, tag = list.filters.tags.value;
    const column = list.columns.find(one => one.name === list.sort), sign = list.down ? -1 : 1;
    const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : (a ?? -2) - (b ?? -2);
    list.order = stvg.queries.filter(query => (!form || query.form === form) && (!tag || query.tags.includes(tag))
      && wanted.every(word => list.words[query.at].includes(word)));
    list.order.sort((a, b) => sign * compare(column.value(a), column.value(b)) || a.at - b.at);
    for (const head of document.querySelectorAll("#queries th")) {
      head.removeAttribute("aria-sort");
      if (head.dataset.column === list.sort) head.setAttribute("aria-sort", list.down ? "descending" : "ascending");
    }
    document.getElementById("shown").textContent = `${list.order.length} of ${stvg.queries.length}`;
    list.body.replaceChildren();
    document.querySelector(".rows").scrollTop = 0;
    list.more();
  },

  more() {
    const {make} = stvg, list = stvg.list, made = list.body.rows.length;
    list.body.append(...list.order.slice(made, made + list.CHUNK).map(query =>
      make("tr", {"data-at": query.at, "aria-selected": query === list.selected}, ...list.columns.map(one => make("td", {class: one.style}, ...one.cell(query))))));
  },

  select(query) {
    const list = stvg.list;
    list.selected = query;
    list.body.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
    if (!query) return;
    while (list.body.rows.length < list.order.length && !list.row(query)) list.more();
    list.row(query)?.setAttribute("aria-selected", "");
    const row = list.row(query), rows = document.querySelector(".rows");
    if (row && (row.offsetTop < rows.scrollTop + 40 || row.offsetTop + row.offsetHeight > rows.scrollTop + rows.clientHeight)) {
      rows.scrollTop = row.offsetTop - rows.clientHeight / 2;
    }
  },

  row: query => stvg.list.body.querySelector(`[data-at="${query.at}"]`),

  // The arrow keys go from query to query.
  step(event) {
    const list = stvg.list, by = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!by || !list.selected || event.target.matches("select")) return;
    const next = list.order[list.order.indexOf(list.selected) + by];
    if (next) location.hash = `#queries/${next.at}`;
    event.preventDefault();
  },
};
