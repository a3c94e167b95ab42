//! A scripted QEMU: a monitor with the state machine of a migration behind it, which remembers
//! every command and dies or refuses where a test wants it.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What a scripted QEMU does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// It ends instead of answering this command (1 is the first).
    pub(super) dies_at: Option<usize>,
    /// It refuses this command.
    pub(super) refuses: Option<&'static str>,
    /// Its migration fails instead of completing.
    pub(super) fails: bool,
    /// Its user stops the guest in the middle of its migration.
    pub(super) pauses: bool,
    /// It runs the guest when it is loaded, whatever it was told.
    pub(super) runs_at_once: bool,
    /// It sends no events, as a QEMU whose `events` somebody switched off.
    pub(super) is_silent: bool,
    /// It lets go of its last migration only when it has been asked so often.
    pub(super) clears_up_after: usize,
}

/// What a scripted QEMU is and was asked.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) run_state: String,
    pub(super) migration: Option<String>,
    /// The guest stood still when its migration began.
    was_paused: bool,
    pub(super) commands: Vec<String>,
    pub(super) capabilities: Vec<(String, bool)>,
    pub(super) parameters: serde_json::Map<String, Value>,
    events: Vec<Value>,
    held: Vec<UnixStream>,
    listener: Option<UnixListener>,
    pub(super) is_dead: bool,
}

pub(super) struct Fake {
    pub(super) qmp: PathBuf,
    pub(super) state: Rc<RefCell<State>>,
    server: JoinHandle<()>,
    _folder: TempDir,
}

impl Fake {
    pub(super) fn new(run_state: &str, faults: Faults) -> Self {
        let folder = TempDir::new().unwrap();
        let qmp = folder.path().join("qmp");
        let listener = UnixListener::bind(&qmp).unwrap();
        let names = [
            "events",
            "return-path",
            "pause-before-switchover",
            "auto-converge",
            "late-block-activate",
        ];
        let parameters = json!({
            "downtime-limit": 300, "max-bandwidth": 5, "avail-switchover-bandwidth": 0,
            "cpu-throttle-initial": 20, "cpu-throttle-increment": 10, "max-cpu-throttle": 99
        });
        let state = Rc::new(RefCell::new(State {
            run_state: run_state.to_owned(),
            capabilities: names.map(|name| (name.to_owned(), false)).to_vec(),
            parameters: parameters.as_object().unwrap().clone(),
            ..State::default()
        }));
        let (kept, path) = (Rc::clone(&state), qmp.clone());
        let server = tokio::task::spawn_local(async move {
            while !kept.borrow().is_dead {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, &kept, faults).await;
            }
            drop(listener);
            // Its end closes all it had open.
            let mut state = kept.borrow_mut();
            state.held.clear();
            state.listener = None;
            std::fs::remove_file(path).unwrap();
        });
        Self { qmp, state, server, _folder: folder }
    }

    pub(super) fn folder(&self) -> &Path {
        self._folder.path()
    }

    pub(super) fn count(&self, command: &str) -> usize {
        self.state.borrow().commands.iter().filter(|asked| *asked == command).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves one client until it leaves or QEMU dies.
async fn serve(stream: UnixStream, state: &Rc<RefCell<State>>, faults: Faults) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let greeting = json!({ "QMP": { "version": {}, "capabilities": ["oob"] } });
    if writer.write_all(format!("{greeting}\r\n").as_bytes()).await.is_err() {
        return;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        let message: Value = serde_json::from_str(&line).unwrap();
        let command = message["execute"].as_str().unwrap().to_owned();
        state.borrow_mut().commands.push(command.clone());
        if faults.dies_at == Some(state.borrow().commands.len()) {
            state.borrow_mut().is_dead = true;
            return;
        }
        let outcome = if faults.refuses == Some(command.as_str()) {
            Err("it is told to refuse".to_owned())
        } else {
            act(state, &command, &message["arguments"], faults).await
        };
        let answer = match outcome {
            Ok(value) => json!({ "return": value, "id": message["id"] }),
            Err(desc) => {
                json!({ "error": { "class": "GenericError", "desc": desc }, "id": message["id"] })
            }
        };
        let mut text = String::new();
        for event in std::mem::take(&mut state.borrow_mut().events) {
            if !faults.is_silent || event["event"] == "RESUME" {
                text.push_str(&format!("{event}\r\n"));
            }
        }
        text.push_str(&format!("{answer}\r\n"));
        if writer.write_all(text.as_bytes()).await.is_err() || state.borrow().is_dead {
            return;
        }
    }
}

fn event(name: &str, data: Value) -> Value {
    let timestamp = json!({ "seconds": 12, "microseconds": 34 });
    json!({ "event": name, "data": data, "timestamp": timestamp })
}

/// Takes a step of a migration with every question, as a real one does with time.
fn advance(state: &mut State, faults: Faults) {
    let status = state.migration.clone();
    match (status.as_deref(), state.run_state.as_str()) {
        (Some("active"), "running") if faults.pauses => {
            state.was_paused = true;
            state.run_state = "paused".to_owned();
            state.events.push(event("STOP", Value::Null));
        }
        (Some("active"), "running") if !faults.fails => {
            state.run_state = "finish-migrate".to_owned();
            state.events.push(event("STOP", Value::Null));
        }
        // One that stands still is not stopped.
        (Some("active"), "paused") if !faults.fails => {
            state.run_state = "finish-migrate".to_owned();
        }
        (Some("active"), "finish-migrate") => {
            state.run_state = "postmigrate".to_owned();
            finish(state, "completed");
        }
        (Some("active"), "running" | "paused") => finish(state, "failed"),
        (Some("active"), "inmigrate") if faults.fails => finish(state, "failed"),
        (Some("active"), "inmigrate") => {
            let run_state = if faults.runs_at_once { "running" } else { "paused" };
            state.run_state = run_state.to_owned();
            finish(state, "completed");
        }
        _ => {}
    }
}

fn finish(state: &mut State, status: &str) {
    state.migration = Some(status.to_owned());
    state.events.push(event("MIGRATION", json!({ "status": status })));
}

async fn act(
    state: &Rc<RefCell<State>>,
    command: &str,
    arguments: &Value,
    faults: Faults,
) -> Result<Value, String> {
    let path = || arguments["uri"].as_str().unwrap().trim_start_matches("unix:").to_owned();
    let asked = |name| state.borrow().commands.iter().filter(|asked| *asked == name).count();
    let clears_up = asked("query-yank") < faults.clears_up_after;
    match command {
        "query-yank" if clears_up => return Ok(json!([{ "type": "migration" }])),
        "query-yank" => return Ok(json!([{ "type": "chardev", "id": "qmp" }])),
        "migrate" if clears_up => return Err("duplicate yank instance".to_owned()),
        // The connection is made before the answer, as in QEMU.
        "migrate" => {
            let held = UnixStream::connect(path()).await.map_err(|error| error.to_string())?;
            let mut state = state.borrow_mut();
            state.held.push(held);
            state.was_paused = state.run_state == "paused";
            state.migration = Some("active".to_owned());
        }
        "migrate-incoming" => {
            let listener = UnixListener::bind(path()).map_err(|error| error.to_string())?;
            let mut state = state.borrow_mut();
            state.listener = Some(listener);
            state.migration = Some("active".to_owned());
        }
        "query-migrate" => {
            let state = &mut *state.borrow_mut();
            advance(state, faults);
            let mut answer = json!({ "ram": { "total": 4096, "remaining": 0, "page-size": 4096 } });
            if let Some(status) = &state.migration {
                answer["status"] = json!(status);
            }
            if state.migration.as_deref() == Some("failed") {
                answer["error-desc"] = json!("it is told to fail");
            }
            return Ok(answer);
        }
        _ => return simple(&mut state.borrow_mut(), command, arguments),
    }
    Ok(json!({}))
}

fn simple(state: &mut State, command: &str, arguments: &Value) -> Result<Value, String> {
    match command {
        "query-status" => return Ok(json!({ "status": state.run_state, "running": false })),
        "query-version" => {
            return Ok(json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" }));
        }
        "query-memory-size-summary" => return Ok(json!({ "base-memory": 4096 })),
        "query-cpus-fast" => return Ok(json!([{ "qom-path": "/cpu" }])),
        "qom-get" => return Ok(json!("some-type")),
        "query-pci" | "qom-list" | "query-block" => return Ok(json!([])),
        "query-migrate-parameters" => return Ok(Value::Object(state.parameters.clone())),
        "query-migrate-capabilities" => {
            let entry = |(name, on): &(String, bool)| json!({ "capability": name, "state": on });
            return Ok(state.capabilities.iter().map(entry).collect());
        }
        "migrate-set-parameters" => {
            let wanted = arguments.as_object().unwrap().clone();
            state.parameters.extend(wanted);
        }
        "migrate-set-capabilities" => {
            for wanted in arguments["capabilities"].as_array().unwrap() {
                let name = wanted["capability"].as_str().unwrap();
                let known = state.capabilities.iter_mut().find(|(known, _)| known == name);
                known.ok_or("unknown capability")?.1 = wanted["state"].as_bool().unwrap();
            }
        }
        "migrate_cancel" => {
            if state.migration.as_deref() == Some("active") {
                let run_state = if state.was_paused { "paused" } else { "running" };
                state.run_state = run_state.to_owned();
                finish(state, "cancelled");
            }
        }
        "cont" if state.run_state == "inmigrate" => {}
        "cont" => {
            state.run_state = "running".to_owned();
            state.events.push(event("RESUME", Value::Null));
        }
        "stop" if state.run_state == "running" => state.run_state = "paused".to_owned(),
        "quit" => state.is_dead = true,
        "stop" | "qmp_capabilities" => {}
        other => return Err(format!("the script knows no {other}")),
    }
    Ok(json!({}))
}
