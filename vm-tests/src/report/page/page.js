'use strict';
// Draws what the data has: rows of spans and marks. It decides nothing; what is said in which words is in rows.rs.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  if (!data) return;
  const $ = (id) => document.getElementById(id);
  const [picture, svg, state, log, now] = ['picture', 'lanes', 'state', 'log', 'now'].map($);
  const LANES = { systemd: 'systemd', processes: 'Processes, and what they hold', mounts: 'Mounts' };
  const [GUTTER, ROW, TOP] = [280, 22, 34];
  const NEAR = 7;

  const make = (name, attributes, text) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const html = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const ms = (ns) => `${(ns / 1e6).toFixed(Math.abs(ns) < 1e9 ? 3 : 1)} ms`;

  // What is shown: a cycle of each run, a window and an instant, all from the begin of the reset.
  let number = 1;
  let [from, to] = [0, 1];
  let at = null;
  let kept = false;

  const numbers = [...new Set(data.runs.flatMap((run) => run.cycles.map((cycle) => cycle.number)))].sort((a, b) => a - b);
  const shown = () => data.runs.map((run) => run.cycles.find((cycle) => cycle.number === number)).map((cycle, run) => ({ cycle, run }))
    .filter(({ cycle }) => cycle);
  const resetOf = (cycle) => cycle.rows.find((row) => row.lane === 'systemd' && row.name === 'reset')?.spans?.[0];
  const failing = () => shown().map(({ cycle }) => cycle.failing && { mark: cycle.failing, at: cycle.failing.at - cycle.zero }).find((one) => one);

  // Rows of two runs that are about the same share a line; a process is known by its name, since its pid is another each time.
  const gathered = () => {
    const all = [];
    for (const { cycle, run } of shown()) {
      const seen = {};
      for (const row of cycle.rows) {
        const name = row.lane === 'processes' ? row.name.replace(/^\d+ /, '') : row.name;
        const nth = seen[row.lane + name] = (seen[row.lane + name] || 0) + 1;
        const key = `${row.lane}/${name}/${nth}`;
        let line = all.find((one) => one.key === key);
        if (!line) all.push(line = { key, lane: row.lane, name: row.name, parts: [] });
        const shift = (one) => ({ ...one, from: one.from - cycle.zero, to: one.to - cycle.zero, at: one.at - cycle.zero });
        line.parts.push({ run, spans: (row.spans || []).map(shift), marks: (row.marks || []).map(shift) });
      }
    }
    const order = Object.keys(LANES);
    return all.sort((a, b) => order.indexOf(a.lane) - order.indexOf(b.lane));
  };

  // Every instant at which something changes, looks of the recorder's left out.
  const changes = (lines) => [...new Set(lines.flatMap(({ parts }) => parts.flatMap(({ spans, marks }) =>
    [...spans.flatMap((span) => [span.from, span.to]), ...marks.filter((mark) => mark.look !== 'tick').map((mark) => mark.at)])))].sort((a, b) => a - b);

  // Of the cycle that is shown, put together once: the pointer asks for them at each move.
  let known = { number: null };
  const shownNow = () => {
    if (known.number !== number) {
      const all = gathered();
      known = { number, lines: all, instants: changes(all) };
    }
    return known;
  };
  const lines = () => shownNow().lines;
  const instants = () => shownNow().instants;

  const width = () => Math.max(600, svg.clientWidth || svg.parentNode.clientWidth);
  const x = (time) => GUTTER + (time - from) / (to - from) * (width() - GUTTER - 12);
  const timeAt = (pixel) => from + (pixel - GUTTER) / (width() - GUTTER - 12) * (to - from);
  const inside = (time) => Math.min(Math.max(time, GUTTER), width() - 12);

  // The picture knows the end; an instant does not.
  const told = (span) => span.end || span.text;

  const step = (span) => {
    const raw = span / 8;
    const base = 10 ** Math.floor(Math.log10(raw));
    return [1, 2, 5, 10].map((by) => by * base).find((one) => one >= raw);
  };

  const draw = () => {
    const all = lines();
    svg.replaceChildren();
    let y = TOP;
    let [spans, marks] = [0, 0];
    let lane = null;
    const places = [];
    const back = make('g', {});
    const front = make('g', {});
    for (const line of all) {
      if (line.lane !== lane) {
        lane = line.lane;
        front.append(make('text', { x: 0, y: y + 16, class: 'lane' }, LANES[lane]));
        y += ROW;
      }
      if (places.length % 2 === 0) back.append(make('rect', { x: 0, y, width: width(), height: ROW, class: 'stripe' }));
      const label = make('text', { x: 8, y: y + 15 }, line.name.length > 36 ? `${line.name.slice(0, 35)}…` : line.name);
      label.append(make('title', {}, line.name));
      front.append(label);
      const two = data.runs.length > 1;
      for (const { run, spans: ofRow, marks: atRow } of line.parts) {
        const [top, height] = two ? [y + 2 + run * 9, 9] : [y + 3, ROW - 6];
        for (const span of ofRow) {
          spans += 1;
          if (span.to < from || span.from > to) continue;
          const [left, right] = [inside(x(span.from)), inside(x(span.to))];
          const bar = make('rect', { x: left, y: top, width: Math.max(right - left, 1.5), height, rx: 2, class: `${span.look}${run ? ' second' : ''}`, 'data-span': told(span) });
          bar.append(make('title', {}, `${told(span)}, ${ms(span.to - span.from)}${span.detail ? `\n${span.detail}` : ''}`));
          front.append(bar);
          if (two) continue;
          const room = 7.3 * told(span).length + 8;
          if (right - left > room) front.append(make('text', { x: left + 4, y: y + 15, class: 'on' }, told(span)));
          // Who holds the mount is what the page is for: beside its bar, where nothing else is.
          else if (span.look === 'holds' && left - room > x(from) && !ofRow.some((other) => other !== span && x(other.to) > left - room && other.to <= span.from)) {
            front.append(make('text', { x: left - 4, y: y + 15, 'text-anchor': 'end' }, told(span)));
          }
        }
        for (const mark of atRow) {
          marks += 1;
          if (mark.at < from || mark.at > to) continue;
          const place = x(mark.at);
          if (mark.look === 'tick') {
            front.append(make('line', { x1: place, x2: place, y1: y + 6, y2: y + ROW - 6, class: 'tick', 'data-mark': mark.text }));
            continue;
          }
          const middle = top + height / 2;
          const flag = make('path', { d: `M${place} ${middle - 7}l6 7l-6 7l-6 -7z`, class: mark.look, 'data-mark': mark.text });
          flag.append(make('title', {}, `${mark.text}${mark.detail ? `\n${mark.detail}` : ''}`));
          front.append(flag);
          if (place + 12 + 7.3 * mark.text.length < width() && mark.look === 'bad') front.append(make('text', { x: place + 10, y: y + 15 }, mark.text));
        }
      }
      places.push({ y, line });
      y += ROW;
    }
    const by = step(to - from);
    for (let time = Math.ceil(from / by) * by; time <= to; time += by) {
      back.append(make('line', { x1: x(time), x2: x(time), y1: 18, y2: y, class: 'grid' }));
      back.append(make('text', { x: x(time) + 3, y: 28, class: 'axis' }, `${+(time / 1e6).toFixed(6)}`));
    }
    back.append(make('text', { x: 8, y: 28, class: 'axis' }, 'ms since the reset began'));
    const wrong = failing();
    if (wrong && wrong.at >= from && wrong.at <= to) {
      const place = x(wrong.at);
      back.append(make('line', { x1: place, x2: place, y1: 14, y2: y, class: 'failing' }));
      const left = place > width() - 300;
      back.append(make('text', { x: place + (left ? -4 : 4), y: 12, class: 'failing', 'text-anchor': left ? 'end' : 'start' }, `${wrong.mark.text}, at ${ms(wrong.at)}`));
    }
    $('wrong').hidden = !wrong;
    document.querySelector('[data-do=failing]').hidden = !wrong;
    if (wrong) $('wrong').textContent = `Cycle ${number}: ${wrong.mark.text}, ${ms(wrong.at)} after the reset began${wrong.mark.detail ? `\n${wrong.mark.detail}` : ''}`;
    svg.append(back, front, make('line', { id: 'cursor', class: 'cursor', y1: 14, y2: y }));
    svg.setAttribute('height', y + 6);
    svg.setAttribute('viewBox', `0 0 ${width()} ${y + 6}`);
    document.documentElement.dataset.drawn = `${all.length} rows, ${spans} spans, ${marks} marks`;
    point();
  };

  // Before and after the instant.
  const point = () => {
    const cursor = $('cursor');
    if (at === null) {
      cursor.setAttribute('visibility', 'hidden');
      now.textContent = '';
      return;
    }
    cursor.setAttribute('visibility', at >= from && at <= to ? 'visible' : 'hidden');
    cursor.setAttribute('x1', x(at));
    cursor.setAttribute('x2', x(at));
    now.textContent = `cycle ${number}, ${ms(at)}${kept ? ', kept' : ''}`;
    const table = html('table');
    const head = html('tr');
    for (const text of [`At ${ms(at)}`, 'just before', 'just after']) head.append(html('th', text));
    table.append(head);
    const cell = (texts) => {
      const one = html('td');
      for (const { text, detail } of texts) {
        one.append(html('div', text));
        if (detail) one.append(html('small', detail));
      }
      if (!texts.length) one.textContent = '–';
      return one;
    };
    // Who holds it first, as that is what one looks for.
    const order = (line) => line.name === 'holders says' ? 0 : line.lane === 'processes' ? 1 : line.lane === 'mounts' ? 2 : 3;
    for (const line of [...lines()].sort((a, b) => order(a) - order(b))) {
      for (const { run, spans, marks } of line.parts) {
        const before = spans.filter((span) => span.from < at && at <= span.to);
        const after = spans.filter((span) => span.from <= at && at < span.to);
        const ended = spans.filter((span) => span.to === at && span.end).map((span) => ({ text: `ends: ${span.end}`, detail: span.end_detail }));
        const here = marks.filter((mark) => mark.at === at && mark.look !== 'tick');
        // What was said stays said.
        const said = line.name === 'holders says' ? marks.filter((mark) => mark.at < at).slice(-1) : [];
        if (!before.length && !after.length && !here.length && !said.length) continue;
        const row = html('tr');
        const whose = data.runs.length > 1 ? `${data.runs[run].label}: ` : '';
        row.append(html('td', whose + line.name), cell([...before, ...said]), cell([...ended, ...after, ...here, ...(here.length ? [] : said)]));
        const key = (list) => list.map((one) => one.text + one.detail).join('/');
        if (here.length || ended.length || key(before) !== key(after)) row.lastChild.className = 'changed';
        table.append(row);
      }
    }
    state.replaceChildren(html('h2', 'State'), table);
    shade();
  };

  const listed = () => {
    log.replaceChildren();
    const entries = shown().flatMap(({ cycle, run }) => cycle.log.map((line) => ({ ...line, run, at: line.at - cycle.zero })));
    const seen = entries.filter((line) => line.at >= from && line.at <= to).sort((a, b) => a.at - b.at);
    log.append(html('h2', 'Journal and kernel log'));
    if (!seen.length) {
      log.append(html('p', entries.length ? 'Nothing in this window.' : 'The journal is kept of cycles that went wrong, once for each way to.', 'hint'));
      return;
    }
    const list = html('ol');
    for (const line of seen) {
      const item = html('li');
      item.dataset.at = line.at;
      const whose = data.runs.length > 1 ? ` ${data.runs[line.run].label}` : '';
      item.append(html('time', ms(line.at)), html('b', line.from + whose), html('span', line.text));
      item.addEventListener('click', () => keep(line.at));
      list.append(item);
    }
    log.append(list);
    shade();
  };

  const shade = () => {
    let last = null;
    for (const item of log.querySelectorAll('li')) {
      item.className = '';
      if (at !== null && Number(item.dataset.at) <= at) last = item;
    }
    if (last) last.className = 'now';
  };

  const cycles = () => {
    const longest = Math.max(1, ...data.runs.flatMap((run) => run.cycles.map((cycle) => { const span = resetOf(cycle); return span ? span.to - span.from : 0; })));
    $('cycles').replaceChildren();
    for (const run of data.runs) {
      for (const cycle of run.cycles) {
        const span = resetOf(cycle);
        const button = html('button', undefined, cycle.failing ? 'bad' : '');
        button.setAttribute('aria-pressed', cycle.number === number);
        const took = span ? ms(span.to - span.from) : 'no reset';
        button.append(html('span', `${run.label ? `${run.label}, ` : ''}cycle ${cycle.number}: ${took}${cycle.failing ? `, ${cycle.failing.text}` : ''}`));
        const bar = html('i');
        bar.style.width = `${span ? (span.to - span.from) / longest * 100 : 0}%`;
        button.append(bar);
        button.addEventListener('click', () => choose(cycle.number));
        $('cycles').append(button);
      }
      if (run.left_out) $('cycles').append(html('p', `${run.label} ${run.left_out} cycles are not on this page, as it would be too large; recording.json has them.`, 'hint'));
    }
  };

  const window_ = (left, right) => {
    if (!(right - left > 1000)) return;
    [from, to] = [left, right];
    draw();
    listed();
  };
  const fit = () => {
    const ends = shown().map(({ cycle }) => [cycle.from - cycle.zero, cycle.to - cycle.zero]);
    window_(Math.min(...ends.map(([left]) => left)), Math.max(...ends.map(([, right]) => right)));
  };
  const theReset = () => {
    const spans = shown().map(({ cycle }) => resetOf(cycle) && resetOf(cycle).to - cycle.zero).filter((end) => end > 0);
    if (!spans.length) return fit();
    const longest = Math.max(...spans);
    window_(-longest * 0.08, longest * 1.12);
  };
  const zoom = (by) => {
    const middle = at !== null && at >= from && at <= to ? at : (from + to) / 2;
    window_(middle - (middle - from) * by, middle + (to - middle) * by);
  };
  const keep = (time) => {
    [at, kept] = [time, true];
    if (at < from || at > to) window_(at - (to - from) / 2, at + (to - from) / 2);
    point();
    try { history.replaceState(null, '', `#cycle=${number}&t=${at / 1e6}`); } catch { /* a page that has no address */ }
  };
  const next = (forward) => {
    const all = instants();
    const found = forward ? all.find((one) => at === null || one > at) : all.findLast((one) => at === null || one < at);
    if (found !== undefined) keep(found);
  };
  const choose = (which) => {
    if (!numbers.includes(which)) return;
    number = which;
    [at, kept] = [null, false];
    state.replaceChildren();
    cycles();
    theReset();
    const wrong = failing();
    if (wrong) keep(wrong.at);
  };
  const act = {
    failing: () => { const wrong = failing(); if (wrong) { theReset(); keep(wrong.at); } },
    reset: theReset,
    all: fit,
    in: () => zoom(0.5),
    out: () => zoom(2),
    before: () => next(false),
    after: () => next(true),
    earlier: () => choose(numbers[numbers.indexOf(number) - 1]),
    later: () => choose(numbers[numbers.indexOf(number) + 1]),
  };
  const KEYS = { f: 'failing', r: 'reset', 0: 'all', '+': 'in', '=': 'in', '-': 'out', ArrowLeft: 'before', ArrowRight: 'after', '[': 'earlier', ']': 'later' };

  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in KEYS)) return;
    event.preventDefault();
    act[KEYS[event.key]]();
  });
  $('tools').addEventListener('click', (event) => act[event.target.dataset.do]?.());
  const pointed = (event) => {
    const pixel = event.clientX - svg.getBoundingClientRect().left;
    if (pixel < GUTTER) return null;
    const near = instants().map((one) => [Math.abs(x(one) - pixel), one]).sort((a, b) => a[0] - b[0])[0];
    return near && near[0] <= NEAR ? near[1] : timeAt(pixel);
  };
  svg.addEventListener('pointermove', (event) => {
    const time = pointed(event);
    if (kept || time === null) return;
    at = time;
    point();
  });
  svg.addEventListener('click', (event) => {
    const time = pointed(event);
    if (time === null) return;
    // A second click on what is kept lets it go.
    if (kept && Math.abs(x(time) - x(at)) <= NEAR) { kept = false; point(); } else keep(time);
  });
  svg.addEventListener('wheel', (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const middle = timeAt(event.clientX - svg.getBoundingClientRect().left);
    const by = event.deltaY > 0 ? 1.25 : 0.8;
    window_(middle - (middle - from) * by, middle + (to - middle) * by);
  }, { passive: false });

  const addressed = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const which = Number(asked.get('cycle'));
    const wrong = data.runs.flatMap((run) => run.cycles).find((cycle) => cycle.failing);
    choose(numbers.includes(which) ? which : wrong ? wrong.number : numbers[0]);
    if (asked.get('t')) keep(Number(asked.get('t')) * 1e6);
  };
  if (!numbers.length) return;
  picture.hidden = false;
  addressed();
  window.addEventListener('hashchange', addressed);
  new ResizeObserver(() => draw()).observe(picture);
})();
