//! The caches of a guest: files that it has read are on the disk as well, and need not be in its memory.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use vmstream::error::{Error, Result, errno};

use crate::point::qmp::Qmp;

/// What the guest does: writes what is not on the disk yet, then forgets pages, names and inodes.
const COMMAND: &str = "sync; echo 3 > /proc/sys/vm/drop_caches";
/// Longest wait for it; a guest may have much to write.
const DROP_MAX: Duration = Duration::from_secs(120);

/// Has the agent at `path` drop the caches of its guest, which must be a Linux.
///
/// Errors: `EIO` when the guest cannot, `ETIMEDOUT` when it takes too long, and those of the connection.
pub fn drop_by(path: &Path) -> Result<()> {
    let mut agent = Qmp::connect_agent(path)?;
    let started = agent.ask("guest-exec", json!({"path": "/bin/sh", "arg": ["-c", COMMAND]}))?;
    let process = json!({"pid": started["pid"]});
    let code = agent.poll("guest-exec-status", process, DROP_MAX, |answer| {
        let code = answer["exitcode"].as_i64().unwrap_or(-1);
        Ok((answer["exited"] == true).then_some(code))
    })?;
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let text = format!("the guest cannot drop its caches: '{COMMAND}' ended with {code} there");
            Err(Error::new(errno::EIO, text))
        }
        None => Err(Error::new(errno::ETIMEDOUT, "the guest does not come to an end of dropping its caches")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::Value;

    use super::*;

    /// Asks an agent in whose guest the command ends with `code`; what was asked of it comes along.
    fn dropped(code: i64) -> (Result<()>, Vec<String>) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let question: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let name = question["execute"].as_str().unwrap().to_owned();
                let answer = match name.as_str() {
                    "guest-sync" => question["arguments"]["id"].clone(),
                    "guest-exec" => json!({"pid": 7}),
                    // It takes until it is asked a second time.
                    _ if asked.last() == Some(&name) => json!({"exited": true, "exitcode": code}),
                    _ => json!({"exited": question["arguments"]["pid"] != 7}),
                };
                asked.push(name);
                writeln!(stream, "{}", json!({ "return": answer })).unwrap();
            }
            asked
        };
        let agent = thread::spawn(answer);
        let outcome = drop_by(&path);
        (outcome, agent.join().unwrap())
    }

    #[test]
    fn the_agent_is_waited_for_and_its_verdict_counts() {
        let (outcome, asked) = dropped(0);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(asked, ["guest-sync", "guest-exec", "guest-exec-status", "guest-exec-status"]);
        let error = dropped(1).0.unwrap_err().to_string();
        assert!(error.contains("ended with 1"), "{error}");
    }
}
