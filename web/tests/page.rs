//! The page over HTTP, without a browser, with a real broker whose machine is played.

#[path = "../broker/tests/support/played.rs"]
mod played;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use left4me_broker::host::Host as _;
use left4me_broker::kept::Kept;
use left4me_broker::serve;
use left4me_broker::work::Work;
use left4me_web::app::App;
use left4me_web::broker::Broker;
use left4me_web::listen::{self, Listen};
use left4me_web::store::Store;
use played::Played;

/// For what is to be shown. The broker tells at once.
const PATIENCE: Duration = Duration::from_secs(20);

fn broker(directory: &Path) -> Arc<Work<Played>> {
    std::fs::create_dir_all(directory.join("jobs")).unwrap();
    let listener = UnixListener::bind(directory.join("broker")).unwrap();
    let work = Work::new(Played::new(&["3", "4"]), Kept::new(directory.join("jobs"))).unwrap();
    let (serving, watching) = (Arc::clone(&work), Arc::clone(&work));
    std::thread::spawn(move || serve::run(&listener, &serving));
    std::thread::spawn(move || watching.host.watch(&|| watching.has_changed()));
    work
}

/// A page, which ends when this is dropped.
struct Page {
    socket: PathBuf,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Page {
    fn start(directory: &Path, socket: &str) -> Self {
        let socket = directory.join(socket);
        let (end, ended) = tokio::sync::oneshot::channel();
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
                }
            });
        });
        is_ready.recv().unwrap();
        Self { socket, end: Some(end), thread: Some(thread) }
    }

    /// The status and the rest.
    fn ask(&self, request: &str, headers: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(sent.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path}"), "")
    }

    fn press(&self, path: &str) -> (u16, String) {
        self.ask(&format!("POST {path}"), "Sec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n")
    }

    /// Reads a page's stream until its part is as wanted.
    fn until(&self, path: &str, wanted: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = format!("GET /live?page={path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(sent.as_bytes()).unwrap();
        let (mut all, mut bytes, begun) = (String::new(), [0_u8; 4096], Instant::now());
        while !all.contains(wanted) {
            assert!(begun.elapsed() < PATIENCE, "no {wanted:?} in {path}: {all}");
            let some = stream.read(&mut bytes).unwrap();
            assert!(some > 0, "the stream ended: {all}");
            all.push_str(&String::from_utf8_lossy(&bytes[..some]));
        }
        all
    }
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
    for headers in [
        "",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost\r\n",
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
    ] {
        let (status, text) = page.ask("POST /servers/3/reset", &format!("{headers}Content-Length: 0\r\n"));
        assert_eq!(status, 403, "{headers}: {text}");
    }
    // Nothing that is read changes anything, no other name is one, and no other server.
    for (request, status) in [
        ("GET /servers/3/start", 404),
        ("POST /servers/5/start", 404),
        ("POST /servers/3/destroy", 404),
        ("POST /servers/..%2F3/start", 404),
        ("GET /servers/5", 404),
        ("GET /jobs/1", 404),
        ("GET /live?page=/etc/passwd", 404),
        ("GET /static/../Cargo.toml", 404),
    ] {
        let (got, text) = page.ask(request, "Sec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n");
        assert_eq!(got, status, "{request}: {text}");
        assert!(text.contains("content-security-policy: default-src 'none'"), "{text}");
    }
    assert_eq!(work.host.done(), [""; 0]);
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
