//! The page over HTTP, without a browser, with a real broker whose machine is played.

#[path = "../broker/tests/support/played.rs"]
mod played;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use left4me_broker::host::Host as _;
use left4me_broker::kept::Kept;
use left4me_broker::serve;
use left4me_broker::work::Work;
use left4me_web::app::App;
use left4me_web::broker::Broker;
use left4me_web::listen::{self, Listen};
use left4me_web::store::Store;
use left4me_web::users::Role;
use played::Played;

/// For what is to be shown. The broker tells at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shorter than what comes in a stream by itself, every 15 s.
const KEPT_ALIVE: Duration = Duration::from_secs(10);

fn broker(directory: &Path) -> Arc<Work<Played>> {
    std::fs::create_dir_all(directory.join("jobs")).unwrap();
    let listener = UnixListener::bind(directory.join("broker")).unwrap();
    let work = Work::new(Played::new(&["3", "4"]), Kept::new(directory.join("jobs"))).unwrap();
    let (serving, watching) = (Arc::clone(&work), Arc::clone(&work));
    std::thread::spawn(move || serve::run(&listener, &serving));
    std::thread::spawn(move || watching.host.watch(&|| watching.has_changed()));
    work
}

/// Their password.
const PASSWORD: &str = "correct horse battery";

/// Says that the page's thread is held, and until it is dropped holds it.
type Hold = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// A page with a user who operates, `anna`, who is in, and one who looks, `otto`. It ends when this is dropped.
struct Page {
    socket: PathBuf,
    database: PathBuf,
    anna: Browser,
    hold: tokio::sync::mpsc::UnboundedSender<Hold>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Page {
    fn start(directory: &Path, socket: &str) -> Self {
        let socket = directory.join(socket);
        let database = directory.join("jobs.sqlite");
        let mut store = Store::open(&database).unwrap();
        for (name, role) in [("anna", Role::Operate), ("otto", Role::Look)] {
            let name = name.parse().unwrap();
            if store.role(&name).unwrap().is_none() {
                store.set_user(&name, role, kept()).unwrap();
            }
        }
        drop(store);
        let (end, ended) = tokio::sync::oneshot::channel();
        let (hold, mut holds) = tokio::sync::mpsc::unbounded_channel::<Hold>();
        let (ready, is_ready) = mpsc::channel();
        let (place, directory) = (socket.clone(), directory.to_owned());
        let thread = std::thread::spawn(move || {
            let store = Store::open(&directory.join("jobs.sqlite")).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let app = App::new(Broker::at(&directory.join("broker")), store);
            let page = listen::run(app, Listen::Path(place), Vec::new(), move |_| ready.send(()).unwrap());
            runtime.block_on(async {
                tokio::select! {
                    served = page => served.unwrap(),
                    _ = ended => {}
                    () = async { while let Some((begun, over)) = holds.recv().await {
                        begun.send(()).unwrap();
                        over.recv().unwrap_err();
                    } } => {}
                }
            });
        });
        is_ready.recv().unwrap();
        let mut page =
            Self { socket, database, anna: Browser::default(), hold, end: Some(end), thread: Some(thread) };
        page.anna = page.comes_in("anna", "").1;
        page
    }

    /// Does something while the page, which has one thread, hears nothing.
    fn unheard<T>(&self, act: impl FnOnce() -> T) -> T {
        let (begin, begun) = mpsc::channel();
        let (end, over) = mpsc::channel();
        self.hold.send((begin, over)).unwrap();
        begun.recv().unwrap();
        let done = act();
        drop(end);
        done
    }

    /// The status and the rest.
    fn ask(&self, request: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let sent = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n{headers}\r\n{body}"
        );
        stream.write_all(sent.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    /// Sends the login's form.
    fn tries(&self, user: &str, password: &str, headers: &str) -> (u16, String) {
        let body = format!("user={user}&password={}&to=/servers/3", password.replace(' ', "+"));
        self.ask("POST /login", &format!("{OURS}{headers}"), &body)
    }

    /// Comes in, and looks for its token.
    fn comes_in(&self, user: &str, headers: &str) -> (String, Browser) {
        let (status, text) = self.tries(user, PASSWORD, headers);
        assert!(status == 303 && text.contains("location: /servers/3\r\n"), "{text}");
        let cookie = between(&text, "set-cookie: ", "; Path=/; HttpOnly; SameSite=Strict").to_owned();
        let mut browser = Browser { cookie: format!("Cookie: {cookie}\r\n"), token: String::new() };
        let jobs = self.ask("GET /jobs", &format!("{}{headers}", browser.cookie), "").1;
        browser.token = between(&jobs, "name=\"token\" value=\"", "\"").to_owned();
        (text, browser)
    }

    fn get_as(&self, browser: &Browser, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path}"), &browser.cookie, "")
    }

    fn press_as(&self, browser: &Browser, path: &str) -> (u16, String) {
        let body = format!("token={}", browser.token);
        self.ask(&format!("POST {path}"), &format!("{OURS}{}", browser.cookie), &body)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.get_as(&self.anna, path)
    }

    fn press(&self, path: &str) -> (u16, String) {
        self.press_as(&self.anna, path)
    }

    /// Reads a page's stream until its part is as wanted.
    fn until(&self, path: &str, wanted: &str) -> String {
        let mut stream = self.follow(&self.anna, path);
        let (mut all, mut bytes, begun) = (String::new(), [0_u8; 4096], Instant::now());
        while !all.contains(wanted) {
            assert!(begun.elapsed() < PATIENCE, "no {wanted:?} in {path}: {all}");
            let some = stream.read(&mut bytes).unwrap();
            assert!(some > 0, "the stream ended: {all}");
            all.push_str(&String::from_utf8_lossy(&bytes[..some]));
        }
        all
    }

    /// A page's stream.
    fn follow(&self, browser: &Browser, path: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = format!(
            "GET /live?page={path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n",
            browser.cookie
        );
        stream.write_all(sent.as_bytes()).unwrap();
        stream
    }
}

/// What a browser has of a session.
#[derive(Debug, Clone, Default)]
struct Browser {
    cookie: String,
    token: String,
}

/// A form of a page of ours.
const OURS: &str = "Sec-Fetch-Site: same-origin\r\n";

/// [`PASSWORD`], as the database has it.
fn kept() -> &'static str {
    static KEPT: OnceLock<String> = OnceLock::new();
    KEPT.get_or_init(|| left4me_web::password::kept(PASSWORD).unwrap())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?}: {text}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?}: {text}")).0
}

impl Drop for Page {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_job_is_a_row_and_the_second_one_is_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    work.host.hold(true);
    let (status, text) = page.press("/servers/3/start");
    assert!(status == 303 && text.contains("location: /servers/3\r\n"), "{text}");
    page.until("/servers/3", "job #1 (start)</a> is under way");
    let (status, text) = page.press("/servers/3/reset");
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("href=\"/jobs/1\">job #1</a>: start of 3"), "{text}");
    assert_eq!(page.press("/servers/4/start").0, 303);
    work.host.hold(false);
    page.until("/jobs/1", "succeeded");
    // The state is systemd's: what happens behind its back is there, too.
    page.until("/servers/3", "state active");
    work.host.set("3", "failed");
    page.until("/servers/3", "state failed");
    work.host.fail(Some("umount: EBUSY: held by <b>196</b>"));
    assert_eq!(page.press("/servers/3/reset").0, 303);
    page.until("/jobs/3", "failed");
    let (status, text) = page.get("/jobs/3");
    assert!(status == 200 && text.contains("EBUSY: held by &#60;b&#62;196"), "{text}");
}

/// How a browser leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// The tab is closed: nobody reads an answer.
    Closed,
    /// It says no more, and reads on.
    Silent,
    /// Something that was sent to it before is unread, so that its end is an error (ECONNRESET).
    Unread,
}

/// Its request was given up as its connection ended: before it was looked at, so that nothing was begun and nobody was told; and, once,
/// between the job's row and the broker's answer, so that the row was queued for ever, and nobody could touch the server.
#[test]
fn a_browser_that_leaves_as_it_presses_has_pressed() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    let mut pressed = Vec::new();
    for leave in [Leave::Closed, Leave::Silent, Leave::Unread].repeat(7) {
        let verb = if pressed.len() % 2 == 0 { "start" } else { "reset" };
        let mut stream = UnixStream::connect(&page.socket).unwrap();
        // A connection that is used again, as browsers do, is watched already: what it says last comes with its end.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut answer, whole) = (Vec::new(), !matches!(leave, Leave::Unread));
        while answer.is_empty() || whole && !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        let body = format!("token={}", page.anna.token);
        let sent = format!(
            "POST /servers/3/{verb} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n{OURS}{}\r\n{body}",
            body.len(),
            page.anna.cookie
        );
        // When it is heard, its end is there, too.
        let left = page.unheard(|| {
            stream.write_all(sent.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            matches!(leave, Leave::Silent).then_some(stream)
        });
        if let Some(mut stream) = left {
            stream.read_to_string(&mut String::new()).unwrap();
        }
        pressed.push(format!("{verb} 3"));
        page.until("/jobs", &format!("href=\"/jobs/{}\"", pressed.len()));
        page.until(&format!("/jobs/{}", pressed.len()), "succeeded");
    }
    assert_eq!(work.host.done(), pressed);
}

/// It would be made for nobody at each change, until something is written to it. And a proxy passes on what comes.
#[test]
fn a_stream_ends_with_its_tab() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    let all = page.until("/servers", "row-3");
    assert!(all.contains("x-accel-buffering: no\r\n"), "{all}");
    let mut stream = page.follow(&page.anna, "/servers");
    stream.set_read_timeout(Some(KEPT_ALIVE)).unwrap();
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&bytes).contains("event: part") {
        assert!(stream.read(&mut bytes).unwrap() > 0, "it has ended at once");
    }
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
}

/// Each has 19 MiB for as long as it is compared, whether somebody waits for it or not.
#[test]
fn who_leaves_while_a_password_is_compared_makes_no_room_for_another() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    let left: Vec<_> = (0..24)
        .map(|number| {
            let body = format!("user=user{number}&password=wrong+horse&to=/");
            let mut stream = UnixStream::connect(&page.socket).unwrap();
            let sent = format!(
                "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n{OURS}X-Forwarded-For: 192.0.2.{number}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(sent.as_bytes()).unwrap();
            stream
        })
        .collect();
    drop(left);
    // It has heard that they have left.
    page.until("/servers", "row-3");
    let (status, text) = page.tries("anna", PASSWORD, "X-Forwarded-For: 192.0.2.200\r\n");
    assert!(status == 503 && text.contains("Many others are coming in just now"), "{text}");
}

#[test]
fn a_job_goes_on_without_the_page_and_its_outcome_is_there_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-4");
    work.host.hold(true);
    assert_eq!(page.press("/servers/3/reset").0, 303);
    assert_eq!(page.press("/servers/4/start").0, 303);
    page.until("/jobs", "running");
    drop(page);
    work.host.hold(false);
    let page = Page::start(directory.path(), "again");
    for job in ["/jobs/1", "/jobs/2"] {
        page.until(job, "succeeded");
    }
    let mut done = work.host.done();
    done.sort();
    assert_eq!(done, ["reset 3", "start 4"]);
}

#[test]
fn what_the_broker_does_not_know_was_interrupted_and_nothing_is_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("jobs.sqlite")).unwrap();
    let ticket = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let (deed, instance) = (left4me_broker::verbs::Deed::Reset, "3".parse().unwrap());
    store.queue(deed, &instance, &ticket, "uid 0", 0).unwrap().unwrap();
    drop(store);
    let page = Page::start(directory.path(), "page");
    page.until("/jobs/1", "is left4me-broker.socket started?");
    let _work = broker(directory.path());
    page.until("/jobs/1", "interrupted");
    assert_eq!(page.press("/servers/3/start").0, 303);
}

#[test]
fn strangers_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    // With all that the browser of somebody who is in sends by itself, and even with the token.
    let body = format!("token={}", page.anna.token);
    for headers in [
        "",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost\r\n",
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
    ] {
        for path in ["/servers/3/reset", "/logout", "/login"] {
            let headers = format!("{headers}{}", page.anna.cookie);
            let (status, text) = page.ask(&format!("POST {path}"), &headers, &body);
            assert_eq!(status, 403, "{headers}: {text}");
        }
    }
    // Nothing that is read changes anything, no other name is one, and no other server.
    for (request, status) in [
        ("GET /servers/3/start", 404),
        ("GET /logout", 405),
        ("POST /servers/5/start", 404),
        ("POST /servers/3/destroy", 404),
        ("POST /servers/..%2F3/start", 404),
        ("GET /servers/5", 404),
        ("GET /jobs/1", 404),
        ("GET /live?page=/etc/passwd", 404),
        ("GET /static/../Cargo.toml", 404),
    ] {
        let (got, text) = page.ask(request, &format!("{OURS}{}", page.anna.cookie), &body);
        assert_eq!(got, status, "{request}: {text}");
        assert!(text.contains("content-security-policy: default-src 'none'"), "{text}");
    }
    assert_eq!(work.host.done(), [""; 0]);
}

#[test]
fn without_a_session_there_is_a_login_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    let other = "0".repeat(64);
    for cookie in
        [String::new(), format!("Cookie: left4me={other}\r\n"), "Cookie: left4me=' OR 1=1 --\r\n".into()]
    {
        for path in ["/", "/servers", "/servers/3", "/servers/3/reset", "/jobs", "/jobs/1", "/doctor", "/no"]
        {
            let (status, text) = page.ask(&format!("GET {path}"), &cookie, "");
            assert!(status == 303 && text.contains("location: /login?to=/"), "{path}: {text}");
            assert!(text.contains("content-length: 0\r\n"), "{path}: {text}");
        }
        assert_eq!(page.ask("GET /live?page=/servers", &cookie, "").0, 401);
        for path in ["/servers/3/reset", "/logout"] {
            let (status, text) = page.ask(&format!("POST {path}"), &format!("{OURS}{cookie}"), "token=");
            assert_eq!(status, 401, "{path}: {text}");
        }
    }
    let (status, text) = page.ask("GET /login?to=//evil.example", "", "");
    assert!(status == 200 && text.contains("name=\"to\" value=\"/servers\""), "{text}");
    assert!(!text.contains("eu-1") && !text.contains("row-3"), "{text}");
    assert_eq!(work.host.done(), [""; 0]);
}

/// What it says can be pasted: the program is on nobody's PATH.
#[test]
fn without_a_user_the_login_says_how_one_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let page = Page::start(directory.path(), "page");
    assert!(page.ask("GET /login", "", "").1.contains("id=\"login\""));
    let store = Store::open(&page.database).unwrap();
    for name in ["anna", "otto"] {
        assert!(store.remove_user(&name.parse().unwrap()).unwrap());
    }
    let (status, text) = page.ask("GET /login", "", "");
    let program = std::env::current_exe().unwrap();
    assert!(status == 200 && !text.contains("id=\"login\""), "{text}");
    assert!(text.contains(&format!("<code>sudo {} passwd NAME</code>", program.display())), "{text}");
}

#[test]
fn a_form_without_the_sessions_own_token_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    // Another session's, of the same user, is as good as none.
    let (_, again) = page.comes_in("anna", "");
    assert_ne!(again.token, page.anna.token);
    let cookie = page.anna.cookie.trim_start_matches("Cookie: left4me=").trim();
    for token in ["", "x", &again.token, cookie, &page.anna.token[1..]] {
        for path in ["/servers/3/reset", "/logout"] {
            let forged = Browser { token: token.into(), ..page.anna.clone() };
            let (status, text) = page.press_as(&forged, path);
            assert_eq!(status, 403, "{path} {token}: {text}");
        }
    }
    let (status, _) = page.ask("POST /servers/3/reset", &format!("{OURS}{}", page.anna.cookie), "");
    assert_eq!(status, 403);
    assert_eq!(work.host.done(), [""; 0]);
    assert_eq!(page.press("/servers/3/reset").0, 303);
}

#[test]
fn who_may_look_does_not_operate() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    let (_, otto) = page.comes_in("otto", "");
    let (status, text) = page.get_as(&otto, "/servers/3");
    assert!(status == 200 && text.contains("you may look, and not operate"), "{text}");
    assert!(!text.contains("action=\"/servers/3/") && !text.contains("data-ask"), "{text}");
    for verb in ["start", "stop", "reset"] {
        let (status, text) = page.press_as(&otto, &format!("/servers/3/{verb}"));
        assert_eq!(status, 403, "{text}");
    }
    assert_eq!(work.host.done(), [""; 0]);
    assert!(!page.get("/jobs").1.contains("#1"));
    // Who asked is in the row.
    assert_eq!(page.press("/servers/3/start").0, 303);
    page.until("/jobs/1", "by anna (uid ");
}

#[test]
fn a_session_ends_by_its_logout_and_by_another_password_and_so_do_its_streams() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    let ended = |browser: &Browser, end: &dyn Fn()| {
        let mut stream = page.follow(browser, "/servers");
        assert_eq!(page.get_as(browser, "/servers").0, 200);
        end();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap_or_else(|error| panic!("{error}: {all}"));
        assert!(all.contains("event: over"), "{all}");
        assert_eq!(page.get_as(browser, "/servers").0, 303);
    };
    let (_, otto) = page.comes_in("otto", "");
    ended(&otto, &|| {
        let (status, text) = page.press_as(&otto, "/logout");
        assert!(status == 303 && text.contains("set-cookie: left4me=; "), "{text}");
        assert!(text.contains("Max-Age=0"), "{text}");
    });
    // As `left4me-web passwd` does it, in another process.
    let others = [page.comes_in("otto", "").1, page.comes_in("otto", "").1];
    ended(&others[0], &|| {
        let mut store = Store::open(&page.database).unwrap();
        store.set_user(&"otto".parse().unwrap(), Role::Look, kept()).unwrap();
    });
    assert_eq!(page.get_as(&others[1], "/servers").0, 303);
    assert_eq!(page.get("/servers").0, 200);
}

#[test]
fn a_session_is_made_at_the_login_and_taken_from_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    let planted = format!("Cookie: left4me={}\r\n", "a".repeat(64));
    let (text, browser) = {
        let (status, text) = page.tries("anna", PASSWORD, &planted);
        assert_eq!(status, 303);
        let cookie = between(&text, "set-cookie: ", ";").to_owned();
        (text, Browser { cookie: format!("Cookie: {cookie}\r\n"), token: String::new() })
    };
    assert_ne!(browser.cookie, planted, "{text}");
    assert_eq!(page.ask("GET /servers", &planted, "").0, 303);
    assert_eq!(page.get_as(&browser, "/servers").0, 200);
    // A login ends the session that the browser had before.
    assert_eq!(page.tries("otto", PASSWORD, &browser.cookie).0, 303);
    assert_eq!(page.get_as(&browser, "/servers").0, 303);
    // Behind TLS, the cookie is for TLS; without, that one is none. On a port, nobody can say that there is TLS.
    let tls = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.7\r\n";
    let (text, secure) = page.comes_in("anna", tls);
    assert!(text.contains("SameSite=Strict; Secure\r\n"), "{text}");
    assert!(secure.cookie.starts_with("Cookie: __Host-left4me="), "{}", secure.cookie);
    assert_eq!(page.get_as(&secure, "/servers").0, 303);
    assert_eq!(page.ask("GET /servers", &format!("{}{tls}", secure.cookie), "").0, 200);
}

#[test]
fn who_guesses_is_held_up_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let mut wrong = 0;
    let held_up = loop {
        // Each address before the last is made up by the client.
        let (status, text) =
            page.tries("otto", "wrong horse", &from(&format!("198.51.100.{wrong}, 192.0.2.7")));
        match status {
            401 => wrong += 1,
            429 => break text,
            _ => panic!("{text}"),
        }
    };
    assert!(wrong == 10 && held_up.contains("retry-after: "), "{wrong}: {held_up}");
    // Also with the right password, and from there for others. From elsewhere, otto comes in.
    assert_eq!(page.tries("otto", PASSWORD, &from("192.0.2.7")).0, 429);
    assert_eq!(page.tries("anna", PASSWORD, &from("192.0.2.7")).0, 429);
    assert_eq!(page.tries("otto", PASSWORD, &from("192.0.2.8")).0, 303);
    assert_eq!(page.get("/servers").0, 200);
    // Whether there is such a user is not said.
    let [there, not_there] =
        ["otto", "nobody"].map(|user| page.tries(user, "wrong horse", &from("192.0.2.9")));
    assert_eq!(there.0, 401);
    let body = |text: &str| text.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&there.1), body(&not_there.1));
    for user in ["%3Cscript%3E", "", "anna%00", "' OR 1=1 --"] {
        let (status, text) = page.tries(user, PASSWORD, &from("192.0.2.10"));
        assert!(status == 401 && !text.contains("<script>"), "{text}");
    }
}

/// By its socket the page is started by its first request, which may be a bookmark.
#[test]
fn the_first_request_is_answered_with_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    for attempt in 0..5 {
        let page = Page::start(directory.path(), &format!("page-{attempt}"));
        let (status, text) = page.get("/servers/3");
        assert!(status == 200 && text.contains("state inactive"), "{text}");
    }
}

#[test]
fn a_servers_page_says_who_plays_who_holds_it_and_what_it_said() {
    let directory = tempfile::tempdir().unwrap();
    let work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers/3", "not known, the game does not answer");
    work.host.players(3, "c1m1_<b>hotel");
    page.until("/servers/3", "3 people of 8, and 1 bot, on c1m1_&#60;b&#62;hotel");
    work.host.say("<script>throw 1</script>");
    page.until("/servers/3", "&#60;script&#62;throw 1&#60;/script&#62;");
    work.host.held("held by 196 (<b>bash</b>): end it");
    page.until("/servers/3", "held by 196 (&#60;b&#62;bash&#60;/b&#62;): end it");
    let (status, text) = page.get("/servers/3/reset");
    for words in ["Reset server 3?", "2 files, 3.0 MiB", "3 people of 8"] {
        assert!(status == 200 && text.contains(words), "{text}");
    }
    work.host.set("3", "");
    let (_, text) = page.get("/servers/3/reset");
    assert!(text.contains("It is in a state that is not known"), "{text}");
    let (_, text) = page.get("/servers/3");
    assert!(
        !text.contains("<script>throw") && !text.contains("<b>hotel") && !text.contains("<b>bash"),
        "{text}"
    );
}

/// The targets of the first page: what it weighs.
#[test]
fn a_page_is_small() {
    let directory = tempfile::tempdir().unwrap();
    let _work = broker(directory.path());
    let page = Page::start(directory.path(), "page");
    page.until("/servers", "row-3");
    let bytes: usize = ["/servers", "/page.js", "/page.css"].map(|path| page.get(path).1.len()).iter().sum();
    assert!(bytes < 50_000, "{bytes} bytes");
}
