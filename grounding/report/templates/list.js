"use strict";
// The list of queries: searched, filtered, sorted. Only the rows around those in view are made: `order[first]` to `order[last - 1]`.
stvg.list = {
  AROUND: 60,
  height: 50,
  sort: "vIoU",
  down: true,

  start() {
    const {make} = stvg, list = stvg.list;
    list.body = document.querySelector("#queries tbody");
    list.pane = document.querySelector(".rows");
    [list.above, list.below] = document.querySelectorAll("#queries .space td");
    list.search = document.getElementById("search");
    list.filters = {form: document.getElementById("form"), tags: document.getElementById("tag")};
    list.words = stvg.queries.map(query => [query.text, query.id, query.path, query.form, ...query.tags].join("\n").toLowerCase());
    list.columns = list.allColumns();
    const row = document.querySelector("#queries thead tr");
    for (const column of list.columns) {
      const button = make("button", {type: "button", title: stvg.MEANING[column.name] ?? column.name}, column.name);
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
    list.pane.addEventListener("scroll", list.scrolled);
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
      {name: "tags", style: "words extra tags", value: query => query.tags.join(" "),
        cell: query => query.tags.flatMap(tag => [make("span", {class: "tag"}, tag), " "])},
      score("vIoU", 0, ""), score("tIoU", 1, stvg.runs.length > 1 ? "extra" : "end"), score("sIoU", 2, "extra"),
    ];
    if (stvg.runs.length > 1) {
      columns.push({name: `vIoU of ${stvg.runs[1]}`, style: "extra other", value: query => stvg.value(query, 1), cell: query => [number(stvg.value(query, 1))]});
      columns.push({name: "difference", style: "gain end", value: stvg.gain,
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
    document.getElementById("none").hidden = list.order.length > 0;
    list.pane.scrollTop = 0;
    list.fill(0);
  },

  // Make the rows around a place of the order. The others leave room, as high as they would be: the bar tells where one is.
  fill(place) {
    const {make} = stvg, list = stvg.list;
    list.first = Math.max(0, place - list.AROUND);
    list.last = Math.min(list.order.length, place + 2 * list.AROUND);
    list.body.replaceChildren(...list.order.slice(list.first, list.last).map(query =>
      make("tr", {"data-at": query.at, "aria-selected": query === list.selected}, ...list.columns.map(one => make("td", {class: one.style}, ...one.cell(query))))));
    list.height = list.body.offsetHeight / list.body.rows.length || list.height;
    list.above.style.height = `${list.first * list.height}px`;
    list.below.style.height = `${(list.order.length - list.last) * list.height}px`;
  },

  // Near the end of the rows made others are, and the first row in view stays where it was.
  scrolled() {
    const list = stvg.list, {pane, order} = list, head = document.querySelector("#queries thead th").offsetHeight;
    const top = pane.scrollTop + head, bottom = pane.scrollTop + pane.clientHeight;
    const seen = [...list.body.rows].findIndex(row => row.offsetTop + row.offsetHeight > top && row.offsetTop < bottom);
    const place = seen < 0 ? Math.min(Math.floor(pane.scrollTop / list.height), order.length - 1) : list.first + seen;
    if (seen >= 0 && (!list.first || place - list.first > 20) && (list.last === order.length || list.last - place > list.AROUND)) return;
    if (!pane.clientHeight || !order.length) return;
    const under = seen < 0 ? head : list.body.rows[seen].offsetTop - pane.scrollTop;
    list.fill(place);
    pane.scrollTop = list.body.rows[place - list.first].offsetTop - under;
  },

  select(query) {
    const list = stvg.list;
    list.selected = query;
    list.body.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
    if (!query) return;
    const place = list.order.indexOf(query), {pane} = list;
    if (place < 0) return;
    if (place < list.first || place >= list.last) list.fill(place);
    const row = list.body.rows[place - list.first];
    row.setAttribute("aria-selected", "");
    if (row.offsetTop < pane.scrollTop + 40 || row.offsetTop + row.offsetHeight > pane.scrollTop + pane.clientHeight) {
      pane.scrollTop = row.offsetTop - pane.clientHeight / 2;
    }
  },

  // The arrow keys go from query to query.
  step(event) {
    const list = stvg.list, by = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!by || !list.selected || event.target.matches("select")) return;
    const next = list.order[list.order.indexOf(list.selected) + by];
    if (next) location.hash = `#queries/${next.at}`;
    event.preventDefault();
  },
};
