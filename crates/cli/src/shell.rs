//! Commands that messages propose.

use std::borrow::Cow;
use std::path::Path;

/// `path` as a word of a POSIX shell: as it is, or in quotes where the shell would read more into it.
pub fn quoted(path: &Path) -> Cow<'_, str> {
    let Some(text) = path.to_str() else {
        return escaped(path).into();
    };
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    match text {
        "" => "''".into(),
        // A leading dash would be a flag.
        text if text.starts_with('-') => quoted(&Path::new(".").join(text)).into_owned().into(),
        text if text.chars().all(is_plain) => text.into(),
        text => format!("'{}'", text.replace('\'', r"'\''")).into(),
    }
}

/// Bytes that are no characters, as bash and zsh read them.
fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let escape = |&byte: &u8| match byte {
        b'\'' | b'\\' => format!("\\{}", byte as char),
        b' '..=b'~' => (byte as char).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("$'{}'", bytes.iter().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_the_path() {
        let words = [
            "runs/fcn",
            "runs/über alles",
            "it's",
            "a$HOME`b`\\",
            "-x y",
            "--out",
            "",
            "*",
            "~/a",
            "a\nb",
            "#1",
        ];
        for word in words {
            let line = format!("printf %s {}", quoted(Path::new(word)));
            let output = std::process::Command::new("sh")
                .args(["-c", &line])
                .output();
            let found = output.expect("there is a shell").stdout;
            let found = String::from_utf8(found).unwrap();
            let expected = match word.starts_with('-') {
                true => format!("./{word}"),
                false => word.to_owned(),
            };
            assert_eq!(found, expected, "{line}");
        }
        assert_eq!(quoted(Path::new("runs/fcn-2")), "runs/fcn-2");
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_characters_are_escaped() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"a\xff'b c"));
        assert_eq!(quoted(path), r"$'a\xff\'b c'");
    }
}
