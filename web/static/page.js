// What makes the page better than its forms and links. All listeners are on the document: what is replaced has none to lose.
'use strict';

const live = document.getElementById('live');
const stale = document.getElementById('stale');
const dialog = document.getElementById('ask');

// A server's journal is seen at its end, where the newest is. Where somebody reads further up, it stands still.
function journal() { return document.getElementById('journal'); }
function atItsEnd() { if (journal()) journal().scrollTop = journal().scrollHeight; }
atItsEnd();

// The live part, whenever it has changed. Whoever has something of it in the keyboard's focus keeps that.
function show(part) {
  const focused = live.contains(document.activeElement) ? document.activeElement.id : '';
  const read = journal();
  const top = read?.scrollTop;
  const isRead = read && top + read.clientHeight < read.scrollHeight - 4;
  live.innerHTML = part;
  if (isRead && journal()) { journal().replaceWith(read); read.scrollTop = top; } else atItsEnd();
  if (focused) document.getElementById(focused)?.focus();
}

// A button that is replaced between its press and its release is not clicked: meanwhile the newest part waits.
let isPressed = false;
let waiting = null;
function press() { isPressed = true; }
function release() {
  // The click itself comes first.
  setTimeout(() => {
    isPressed = false;
    if (waiting !== null) show(waiting);
    waiting = null;
  });
}
document.addEventListener('pointerdown', press);
document.addEventListener('keydown', (event) => { if (event.key === ' ') press(); });
for (const end of ['pointerup', 'pointercancel', 'keyup']) document.addEventListener(end, release);
window.addEventListener('blur', release);

// A tab that nobody looks at has no stream: without HTTP/2 a browser has six connections to a host for all of its tabs, and the seventh
// would wait for ever. Whoever comes back to it has what changed meanwhile at once.
let followed = null;
function follow() {
  if (document.hidden || followed) return;
  const stream = new EventSource('/live?page=' + encodeURIComponent(live.dataset.live));
  followed = stream;
  stream.addEventListener('part', (event) => { if (isPressed) waiting = event.data; else show(event.data); });
  stream.addEventListener('open', () => { stale.hidden = true; });
  // The session has ended: the page itself leads to the login.
  stream.addEventListener('over', () => { stream.close(); location.reload(); });
  stream.addEventListener('error', () => {
    stale.hidden = false;
    // A browser gives up at an answer that is no stream, as a proxy's whose page is away, or ours to who is not in any more.
    if (stream.readyState === EventSource.CLOSED) { followed = null; setTimeout(again, 5000); }
  });
}
async function again() {
  const answer = await fetch(location.href, { redirect: 'manual' }).catch(() => null);
  if (answer?.type === 'opaqueredirect') location.reload(); else follow();
}
document.addEventListener('visibilitychange', () => {
  if (!live.dataset.live) return;
  if (!document.hidden) follow();
  else if (followed) { followed.close(); followed = null; }
});
if (live.dataset.live) follow();

// A question is a page of its own; here its middle is asked in a dialog.
async function ask(link) {
  let question = null;
  try {
    const answer = await fetch(link.href);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    question = answer.ok ? page.getElementById('question') : null;
  } catch { /* The page itself says what is wrong. */ }
  if (!question) { location.href = link.href; return; }
  dialog.replaceChildren(question);
  dialog.dataset.from = link.id;
  dialog.showModal();
  dialog.querySelector('[data-close]').focus();
}

document.addEventListener('click', (event) => {
  if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = event.target.closest('a[data-ask]');
  if (link) { event.preventDefault(); ask(link); }
  if (event.target.closest('dialog [data-close]')) { event.preventDefault(); dialog.close(); }
});

// A button that says why it cannot be pressed is no link to anywhere; a form is sent once.
document.addEventListener('submit', (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = 'yes';
});

// The row that it came from may be another one by now.
dialog.addEventListener('close', () => { document.getElementById(dialog.dataset.from)?.focus(); });
