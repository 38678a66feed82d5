//! From bytes to commands: the request half of the Redis protocol (RESP 2 and 3), pure.
//!
//! A command is an array of bulk strings, or a line of words (what people type into telnet). The
//! reader borrows from the connection's buffer and allocates nothing; every length is bounded
//! before anything is read by it.

/// Longest command, in bytes. A buffer of this size always holds a whole one or proves it illegal.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// Most arguments of a command, its name included.
pub const MAX_ARGUMENTS: usize = 1_024;
/// Arguments that are kept; no command here looks at more.
pub const KEPT: usize = 8;
/// Longest line: a length, or a command typed by hand.
const MAX_LINE_BYTES: usize = 4 * 1024;

/// The arguments of one command, its name first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    kept: [&'a [u8]; KEPT],
    count: usize,
}

impl<'a> Arguments<'a> {
    const NONE: Self = Self {
        kept: [&[]; KEPT],
        count: 0,
    };

    fn push(&mut self, argument: &'a [u8]) {
        if let Some(place) = self.kept.get_mut(self.count) {
            *place = argument;
        }
        self.count += 1;
    }

    /// How many there are, those that are not kept included.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Those that are kept, at most [`KEPT`].
    #[inline]
    #[must_use]
    pub fn kept(&self) -> &[&'a [u8]] {
        self.kept.get(..self.count.min(KEPT)).unwrap_or(&[])
    }
}

/// What a buffer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// The beginning of a command: more bytes are needed.
    Partial,
    /// A command of `len` bytes. No arguments: an empty line or array, to be skipped.
    Command {
        /// Its arguments.
        arguments: Arguments<'a>,
        /// Bytes of the buffer it takes.
        len: usize,
    },
    /// Not the protocol. The connection cannot go on: where the next command begins is unknown.
    Broken(Broken),
}

/// Why bytes are not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The number of arguments.
    #[error("invalid multibulk length; at most {MAX_ARGUMENTS}")]
    Count,
    /// The length of an argument.
    #[error("invalid bulk length; a command has at most {MAX_COMMAND_BYTES} bytes")]
    Length,
    /// An argument does not begin with its length.
    #[error("expected `$`")]
    Dollar,
    /// An argument does not end where its length says.
    #[error("an argument does not end with CR LF")]
    End,
    /// A line without an end.
    #[error("too big inline request; at most {MAX_LINE_BYTES} bytes")]
    Line,
}

/// Reads the first command of `buffer`.
#[inline]
#[must_use]
pub fn read(buffer: &[u8]) -> Read<'_> {
    let read = match buffer.first() {
        None => Read::Partial,
        Some(b'*') => read_array(buffer),
        Some(_) => read_line(buffer),
    };
    if matches!(read, Read::Partial) && buffer.len() >= MAX_COMMAND_BYTES {
        return Read::Broken(Broken::Length);
    }
    read
}

#[inline]
fn read_array(buffer: &[u8]) -> Read<'_> {
    let (count, mut at) = match number(buffer, 1) {
        Ok(Some(found)) => found,
        Ok(None) => return Read::Partial,
        Err(()) => return Read::Broken(Broken::Count),
    };
    let mut arguments = Arguments::NONE;
    if count > MAX_ARGUMENTS as i64 {
        return Read::Broken(Broken::Count);
    }
    // As Redis does: an array of no or fewer arguments is nothing.
    for _ in 0..count.max(0) {
        match buffer.get(at) {
            None => return Read::Partial,
            Some(b'$') => {}
            Some(_) => return Read::Broken(Broken::Dollar),
        }
        let (len, start) = match number(buffer, at + 1) {
            Ok(Some(found)) => found,
            Ok(None) => return Read::Partial,
            Err(()) => return Read::Broken(Broken::Length),
        };
        let Some(end) = usize::try_from(len)
            .ok()
            .and_then(|len| start.checked_add(len))
            .filter(|end| *end <= MAX_COMMAND_BYTES - 2)
        else {
            return Read::Broken(Broken::Length);
        };
        let (Some(argument), Some(after)) = (buffer.get(start..end), buffer.get(end..end + 2))
        else {
            return Read::Partial;
        };
        if after != b"\r\n" {
            return Read::Broken(Broken::End);
        }
        arguments.push(argument);
        at = end + 2;
    }
    Read::Command { arguments, len: at }
}

/// Reads a number and its CR LF from `at`: the number and where it ends; `None` if it does not end
/// yet.
#[inline]
fn number(buffer: &[u8], at: usize) -> Result<Option<(i64, usize)>, ()> {
    let Some(mut rest) = buffer.get(at..) else {
        return Ok(None);
    };
    let mut end = at;
    let negative = rest.first() == Some(&b'-');
    if negative {
        rest = rest.get(1..).unwrap_or(&[]);
        end += 1;
    }
    let mut value = 0_i64;
    // Nine digits are beyond every bound there is.
    for (digits, byte) in rest.iter().take(10).enumerate() {
        end += 1;
        match byte {
            b'0'..=b'9' if digits < 9 => value = value * 10 + i64::from(byte - b'0'),
            b'\r' if digits > 0 => {
                return match buffer.get(end) {
                    Some(b'\n') => Ok(Some((if negative { -value } else { value }, end + 1))),
                    Some(_) => Err(()),
                    None => Ok(None),
                };
            }
            _ => return Err(()),
        }
    }
    Ok(None)
}

fn read_line(buffer: &[u8]) -> Read<'_> {
    let window = buffer.get(..MAX_LINE_BYTES).unwrap_or(buffer);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == MAX_LINE_BYTES {
            Read::Broken(Broken::Line)
        } else {
            Read::Partial
        };
    };
    let line = window.get(..end).unwrap_or(&[]);
    let mut arguments = Arguments::NONE;
    for word in line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
    {
        arguments.push(word);
    }
    Read::Command {
        arguments,
        len: end + 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &[u8]) -> Vec<Vec<u8>> {
        match read(text) {
            Read::Command { arguments, len } => {
                assert_eq!(len, text.len());
                arguments.kept().iter().map(|word| word.to_vec()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn encode(arguments: &[Vec<u8>]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            out.extend_from_slice(argument);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    #[test]
    fn reads_arrays_and_lines() {
        assert_eq!(
            words(b"*2\r\n$4\r\nPING\r\n$2\r\n\r\n\r\n"),
            [b"PING".to_vec(), b"\r\n".to_vec()]
        );
        assert_eq!(words(b" PING  x\r\n"), [b"PING".to_vec(), b"x".to_vec()]);
        assert_eq!(words(b"\r\n"), Vec::<Vec<u8>>::new());
        assert_eq!(words(b"*-1\r\n"), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn refuses_what_is_not_the_protocol() {
        for (text, broken) in [
            (&b"*x\r\n"[..], Broken::Count),
            (b"*\r\n", Broken::Count),
            (b"*1025\r\n", Broken::Count),
            (b"*9999999999\r\n", Broken::Count),
            (b"*1\r\n+OK\r\n", Broken::Dollar),
            (b"*1\r\n$-1\r\n", Broken::Length),
            (b"*1\r\n$65536\r\n", Broken::Length),
            (b"*1\r\n$1\r\nabc", Broken::End),
            (&[b'a'; MAX_LINE_BYTES], Broken::Line),
        ] {
            assert_eq!(read(text), Read::Broken(broken), "{text:?}");
        }
    }

    #[test]
    fn largest_buffer_holds_a_command_or_proves_it_illegal() {
        // Whatever fills the buffer and is still partial would block the connection for ever.
        let mut text = b"*1\r\n$65520\r\n".to_vec();
        text.resize(MAX_COMMAND_BYTES, b'x');
        assert_ne!(read(&text), Read::Partial);
        let mut many = format!("*{MAX_ARGUMENTS}\r\n").into_bytes();
        while many.len() < MAX_COMMAND_BYTES {
            many.extend_from_slice(b"$64\r\n");
            many.extend_from_slice(&[b'x'; 64]);
            many.extend_from_slice(b"\r\n");
        }
        many.truncate(MAX_COMMAND_BYTES);
        assert_ne!(read(&many), Read::Partial);
    }

    proptest! {
        #[test]
        fn whole_commands_read_as_written(
            arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..12),
            behind in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut text = encode(&arguments);
            let len = text.len();
            // No beginning of it is a command, nor an error.
            for cut in 0..len {
                prop_assert_eq!(read(&text[..cut]), Read::Partial);
            }
            text.extend_from_slice(&behind);
            let Read::Command { arguments: found, len: taken } = read(&text) else {
                return Err(TestCaseError::fail("not read"));
            };
            prop_assert_eq!(taken, len);
            prop_assert_eq!(found.count(), arguments.len());
            let kept: Vec<Vec<u8>> = found.kept().iter().map(|word| word.to_vec()).collect();
            prop_assert_eq!(&kept[..], &arguments[..arguments.len().min(KEPT)]);
        }

        #[test]
        fn any_bytes_end_in_progress_a_request_for_more_or_an_error(
            mut text in prop::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|byte| vec![byte]),
                    Just(b"*3\r\n".to_vec()),
                    Just(b"$3\r\n".to_vec()),
                    Just(b"$0\r\n\r\n".to_vec()),
                    Just(b"*1\r\n$4\r\nPING\r\n".to_vec()),
                    Just(b"\r\n".to_vec()),
                ],
                0..200,
            ).prop_map(|parts| parts.concat()),
        ) {
            while let Read::Command { len, arguments } = read(&text) {
                prop_assert!(len > 0 && len <= text.len());
                prop_assert!(arguments.count() <= MAX_ARGUMENTS.max(len));
                text.drain(..len);
            }
        }
    }
}
