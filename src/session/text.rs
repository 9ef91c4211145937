//! The text form of a session: one line an access, for people and for other programs.
//!
//! The first line is `# vmtrace 1 size=BYTES block=BYTES`, perhaps followed by what else is known of the image and of the
//! session's beginning: `validator=TEXT` (space, control characters, `%` and all that is not ASCII as `%XX`),
//! `mtime=SECONDS` and `started=MICROSECONDS`, both since 1970. Words not known here are passed over. Then each line is `T_US OP OFFSET LENGTH`: microseconds since the
//! start, `R`, `W`, `D` (discard) or `F` (flush, with 0 0), bytes; perhaps followed by `wait=US`, how long the guest waited.
//! `# T_US mark TEXT` names a moment. Other lines that begin with `#`, and empty ones, mean nothing.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use super::{Access, Event, Recording, Session, Subject, WallTime};
use crate::block::Geometry;
use crate::error::{Error, Result, errno};
use crate::gate::Op;

/// Reads a session. `name` is for errors, which also have the number of the line.
pub fn parse(name: &str, input: impl Read) -> Result<Session> {
    parse_recording(name, input).map(|recording| recording.session)
}

/// Reads a session and what the first line says of its image.
pub fn parse_recording(name: &str, input: impl Read) -> Result<Recording> {
    let bad = |line: usize, what: &str| Error::new(errno::EINVAL, format!("{name}:{line}: {what}"));
    let mut lines = BufReader::new(input).lines();
    let first = lines.next().transpose().map_err(|e| Error::io(format!("cannot read {name}"), e))?;
    let subject = header(first.as_deref().unwrap_or_default())
        .ok_or_else(|| bad(1, "not a session: the first line must be '# vmtrace 1 size=BYTES block=BYTES'"))??;
    let geometry = subject.geometry;
    let mut session = Session { geometry, accesses: Vec::new(), marks: Vec::new() };
    for (number, line) in (2..).zip(lines) {
        let line = line.map_err(|e| Error::io(format!("cannot read {name}"), e))?;
        if let Some(comment) = line.strip_prefix('#') {
            session.marks.extend(mark(comment));
        } else if !line.trim().is_empty() {
            let access = access(&line).ok_or_else(|| bad(number, "not 'T_US R|W|D|F OFFSET LENGTH [wait=US]'"))?;
            let inside =
                access.op == Op::Flush || (access.length > 0 && geometry.contains(access.offset, access.length));
            if !inside {
                return Err(bad(number, &format!("outside the image of {} bytes", geometry.size())));
            }
            if session.accesses.last().is_some_and(|last| last.at > access.at) {
                return Err(bad(number, "earlier than the line before it"));
            }
            session.accesses.push(access);
        }
    }
    // Marks may stand anywhere in a text made by hand.
    session.marks.sort_by_key(|mark| mark.0);
    Ok(Recording { subject, session, lost_bytes: 0 })
}

fn header(line: &str) -> Option<Result<Subject>> {
    let (mut size, mut block) = (None, None);
    let (mut validator, mut mtime_s, mut started) = (None, None, None);
    for word in line.strip_prefix("# vmtrace 1")?.split_whitespace() {
        match word.split_once('=')? {
            ("size", n) => size = n.parse().ok(),
            ("block", n) => block = n.parse().ok(),
            ("validator", text) => validator = Some(unescape(text)?),
            ("mtime", n) => mtime_s = Some(n.parse().ok()?),
            ("started", n) => started = Some(n.parse().ok().map(WallTime).filter(|at| at.is_sound())?),
            _ => {} // what a later version may add
        }
    }
    let geometry = Geometry::new(size?, block?);
    Some(geometry.map(|geometry| Subject { geometry, validator, mtime_s, started }))
}

/// One word that holds any text.
fn escape(text: &str) -> String {
    let mut word = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            word.push(byte.into());
        } else {
            let _ = write!(word, "%{byte:02X}");
        }
    }
    word
}

fn unescape(word: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        bytes.push(if byte == b'%' {
            let (digits, more) = rest.split_first_chunk::<2>()?;
            rest = more;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

fn micros(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_micros)
}

fn mark(comment: &str) -> Option<(Duration, String)> {
    let mut words = comment.trim_start().splitn(3, ' ');
    let at = micros(words.next()?)?;
    (words.next()? == "mark").then(|| (at, words.next().unwrap_or_default().to_owned()))
}

fn access(line: &str) -> Option<Access> {
    let mut words = line.split_whitespace();
    let at = micros(words.next()?)?;
    let op = match words.next()? {
        "R" => Op::Read,
        "W" => Op::Write,
        "D" => Op::Discard,
        "F" => Op::Flush,
        _ => return None,
    };
    let offset = words.next()?.parse().ok()?;
    let length = words.next()?.parse().ok()?;
    let stalled = match words.next() {
        None => Duration::ZERO,
        Some(word) => micros(word.strip_prefix("wait=")?)?,
    };
    words.next().is_none().then_some(Access { at, op, offset, length, stalled })
}

/// Writes a session as text.
pub fn print(session: &Session) -> String {
    print_with(&Subject::nameless(session.geometry), session)
}

/// Writes a session as text, with all that is known of its image in the first line.
pub fn print_recording(recording: &Recording) -> String {
    print_with(&recording.subject, &recording.session)
}

fn print_with(subject: &Subject, session: &Session) -> String {
    let geometry = subject.geometry;
    let mut text = format!("# vmtrace 1 size={} block={}", geometry.size(), geometry.block_bytes());
    if let Some(validator) = &subject.validator {
        let _ = write!(text, " validator={}", escape(validator));
    }
    if let Some(mtime_s) = subject.mtime_s {
        let _ = write!(text, " mtime={mtime_s}");
    }
    if let Some(started) = subject.started {
        let _ = write!(text, " started={}", started.0);
    }
    text.push('\n');
    for event in session.events() {
        match event {
            Event::Access(access) => print_access(&mut text, &access),
            Event::Mark(at, name) => {
                // A name is one line.
                let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                let _ = writeln!(text, "# {} mark {name}", at.as_micros());
            }
        }
    }
    text
}

fn print_access(text: &mut String, access: &Access) {
    let op = match access.op {
        Op::Read => 'R',
        Op::Write => 'W',
        Op::Discard => 'D',
        Op::Flush => 'F',
    };
    let _ = write!(text, "{} {op} {} {}", access.at.as_micros(), access.offset, access.length);
    if access.stalled > Duration::ZERO {
        let _ = write!(text, " wait={}", access.stalled.as_micros());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Block;

    const SAMPLE: &str = "# vmtrace 1 size=100000 block=4096\n\
        # made by hand\n\
        10 R 0 8192\n\
        # 15 mark login\n\
        20 W 8192 4096 wait=7\n\
        30 R 4096 12288\n\
        40 F 0 0\n\
        41 D 50000 10\n";

    #[test]
    fn text_and_session_are_the_same_thing() {
        let session = parse("sample", SAMPLE.as_bytes()).unwrap();
        assert_eq!(session.accesses.len(), 5);
        assert_eq!(session.marks, [(Duration::from_micros(15), "login".to_owned())]);
        let again = print(&session);
        assert_eq!(again, SAMPLE.replace("# made by hand\n", ""));
        assert_eq!(parse("again", again.as_bytes()).unwrap(), session);
    }

    #[test]
    fn the_first_line_may_say_which_image_it_is() {
        let geometry = Geometry::new(100_000, 4096).unwrap();
        let validator = Some("Sun, 22 Nov 100% \"\u{e4}\"\n".to_owned());
        let subject = Subject { geometry, validator, mtime_s: Some(-7), started: Some(WallTime(12)) };
        let session = parse("sample", SAMPLE.as_bytes()).unwrap();
        let recording = Recording { subject, session, lost_bytes: 0 };
        let text = print_recording(&recording);
        let says = " validator=Sun,%2022%20Nov%20100%25%20\"%C3%A4\"%0A mtime=-7 started=12\n";
        assert!(text.contains(says), "{text}");
        assert_eq!(parse_recording("again", text.as_bytes()).unwrap(), recording);
        let more = SAMPLE.replacen(" block", " novelty=1 block", 1);
        assert_eq!(parse("more", more.as_bytes()).unwrap(), recording.session, "a word of a later version");
        for wrong in ["validator=%2", "validator=%FF", "mtime=x", "started=99999999999999999999", "word"] {
            let text = format!("# vmtrace 1 size=1 block=512 {wrong}\n");
            assert!(parse("s", text.as_bytes()).unwrap_err().to_string().contains("s:1:"), "{wrong}");
        }
    }

    #[test]
    fn what_was_overwritten_first_was_never_needed() {
        let session = parse("sample", SAMPLE.as_bytes()).unwrap();
        let touches = session.first_touches();
        let blocks: Vec<_> = touches.iter().map(|t| t.block).collect();
        assert_eq!(blocks, [0, 1, 3, 12].map(Block), "block 2 was written as a whole, 12 discarded in part");
        // The guest waited for 7 us before.
        assert_eq!(touches[2].at, Duration::from_micros(23));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let first = "# vmtrace 1 size=100000 block=4096\n";
        for (text, says) in [
            ("", "s:1: not a session"),
            ("# vmtrace 2 size=1 block=4096\n", "s:1: not a session"),
            ("# vmtrace 1 size=1 block=3\n", "block size 3"),
            (&format!("{first}1 R 0\n"), "s:2: not "),
            (&format!("{first}1 X 0 1\n"), "s:2: not "),
            (&format!("{first}1 R 0 1 more\n"), "s:2: not "),
            (&format!("{first}\n1 R 99999 2\n"), "s:3: outside"),
            (&format!("{first}1 R 0 0\n"), "s:2: outside"),
            (&format!("{first}1 R 18446744073709551615 2\n"), "s:2: outside"),
            (&format!("{first}2 R 0 1\n1 R 0 1\n"), "s:3: earlier"),
        ] {
            let error = parse("s", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
