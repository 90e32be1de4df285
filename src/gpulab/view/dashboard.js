"use strict";
// Shows what state.json says. Every text becomes a text node: nothing from outside is ever read as HTML.
(() => {
  const EVERY_MS = 3000;
  const byId = (id) => document.getElementById(id);
  const shown = new Map(); // key of a tile -> { json, node }
  let standing = ""; // the one chosen among the counts; "" for all
  let timer = 0;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  }

  function bar(percent, label) {
    const made = element("progress", percent >= 100 ? "full" : "");
    made.max = 100;
    made.value = percent;
    made.setAttribute("aria-label", label);
    return made;
  }

  function tileOf(tile) {
    const node = element("li", "tile " + tile.css);
    const head = element("header");
    const who = element("span");
    who.append(element("b", "", tile.who));
    if (tile.group && tile.group !== tile.who) who.append(" ", element("span", "soft", tile.group));
    head.append(who, element("span", "standing", tile.standing));
    node.append(head);
    if (tile.names) node.append(element("div", "names soft", tile.names));
    if (tile.words !== tile.standing) node.append(element("div", "words", tile.words));
    if (tile.gpu_percent !== null) node.append(bar(tile.gpu_percent, "GPU " + tile.gpu_percent + " %"));
    if (tile.spent || tile.ends) {
      const foot = element("footer");
      foot.append(element("span", tile.spent_percent >= 100 ? "alarm" : "", tile.spent), element("span", "", tile.ends));
      node.append(foot);
    }
    node.title = [tile.place, tile.instance].filter(Boolean).join(", ");
    return node;
  }

  function showTiles(tiles) {
    const list = byId("tiles");
    const present = new Set(tiles.map((tile) => tile.key));
    for (const [key, had] of shown) {
      if (!present.has(key)) {
        had.node.remove();
        shown.delete(key);
      }
    }
    tiles.forEach((tile, place) => {
      const json = JSON.stringify(tile);
      let had = shown.get(tile.key);
      if (!had || had.json !== json) {
        const node = tileOf(tile);
        if (had) had.node.replaceWith(node);
        had = { json, node, tile };
        shown.set(tile.key, had);
      }
      if (list.children[place] !== had.node) list.insertBefore(had.node, list.children[place] || null);
    });
  }

  function choose() {
    const wanted = byId("search").value.trim().toLowerCase();
    let count = 0;
    for (const { node, tile } of shown.values()) {
      const text = [tile.who, tile.names, tile.group, tile.words, tile.place, tile.instance].join(" ").toLowerCase();
      const fits = text.includes(wanted) && (standing === "" || standing === tile.standing);
      node.hidden = !fits;
      if (fits) count += 1;
    }
    byId("found").textContent = wanted || standing ? count + " of " + shown.size : "";
  }

  function showCounts(counts) {
    if (!counts.some((count) => count.standing === standing)) standing = "";
    byId("counts").replaceChildren(
      ...counts.map((count) => {
        const button = element("button");
        const dot = element("span", "dot " + count.css);
        button.type = "button";
        button.setAttribute("aria-pressed", String(count.standing === standing));
        button.append(dot, element("b", "", String(count.count)), " " + count.standing);
        button.addEventListener("click", () => {
          standing = standing === count.standing ? "" : count.standing;
          showCounts(counts);
          choose();
        });
        const item = element("li");
        item.append(button);
        return item;
      }),
    );
  }

  function gaugeOf(gauge) {
    const item = element("li");
    item.append(gauge.title, element("b", "", gauge.text));
    if (gauge.percent !== null) item.append(bar(gauge.percent, gauge.title + ", spent of its budget"));
    item.append(element("span", "soft", gauge.note));
    return item;
  }

  function entryOf(entry) {
    const item = element("li");
    item.append(element("time", "", entry.at), element("span", entry.is_alarm ? "alarm" : "", entry.text));
    return item;
  }

  function replace(id, json, nodes) {
    const list = byId(id);
    if (list.dataset.json === json) return; // so that a selection and the place in a long list stay
    list.dataset.json = json;
    list.replaceChildren(...nodes());
  }

  function show(state) {
    document.body.classList.remove("stale");
    byId("looked").textContent = state.looked_at ? "looked at " + state.looked_at : "Looking for the first time";
    replace("notes", JSON.stringify(state.notes), () => state.notes.map((note) => element("li", "", note)));
    replace("counts", JSON.stringify(state.counts), () => []);
    if (!byId("counts").children.length) showCounts(state.counts);
    replace("gauges", JSON.stringify(state.gauges), () => state.gauges.map(gaugeOf));
    replace("log", JSON.stringify(state.log), () => state.log.map(entryOf));
    showTiles(state.tiles);
    choose();
  }

  function fail(text) {
    document.body.classList.add("stale");
    replace("notes", JSON.stringify(text), () => [element("li", "", text)]);
  }

  async function ask() {
    window.clearTimeout(timer);
    if (!document.hidden) {
      try {
        const answer = await fetch("state.json", { cache: "no-store", credentials: "same-origin" });
        if (answer.ok) show(await answer.json());
        else fail("This page is of a dashboard that has ended; `gpulab dashboard` opens a new one");
      } catch {
        fail("The dashboard does not answer: it has ended, or this computer slept. Asking again");
      }
    }
    timer = window.setTimeout(ask, EVERY_MS);
  }

  byId("search").addEventListener("input", choose);
  byId("look").addEventListener("click", async () => {
    await fetch("look", { method: "POST", credentials: "same-origin" }).catch(() => undefined);
    ask();
  });
  document.addEventListener("visibilitychange", ask);
  ask();
})();
