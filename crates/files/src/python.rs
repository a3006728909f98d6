//! Python's literals, as configurations are written with them.

/// A value of a configuration in Python.
#[derive(Clone, Debug, PartialEq)]
pub enum PythonValue {
    /// `dict(key=value)` or `{'key': value}`.
    Dict(Vec<(String, PythonValue)>),
    /// A list or a tuple.
    List(Vec<PythonValue>),
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// `True`, `False`, `None`, and names that nothing is known of.
    Word(String),
}

/// `text` as a literal of Python.
pub fn python_text(text: &str) -> String {
    let mut out = String::from("'");
    for c in text.chars() {
        match c {
            '\\' | '\'' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "'"
}

/// How deep values may be within each other.
const MAX_DEPTH: usize = 64;

impl PythonValue {
    /// The value that `name` has in the last line of `text` that begins with `name =`. `None` if there
    /// is no such line, or what follows is not made of literals.
    pub fn assigned(text: &str, name: &str) -> Option<Self> {
        let value = |line: &'_ str| -> Option<usize> {
            let rest = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
            (!rest.starts_with('=')).then(|| line.len() - rest.len())
        };
        let mut start = None;
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            start = value(line).map(|offset| at + offset).or(start);
            at += line.len();
        }
        let mut parser = Parser {
            rest: &text[start?..],
            depth: 0,
        };
        parser.value()
    }

    /// What a dictionary holds under `key`.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(entries) => entries
                .iter()
                .rev()
                .find_map(|(found, value)| (found == key).then_some(value)),
            _ => None,
        }
    }

    /// Whether it says that there is nothing.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Word(word) if word == "None")
    }
}

/// As Python writes it, lists as tuples.
impl std::fmt::Display for PythonValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dict(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{key}={value}"));
                write!(f, "dict({})", entries.collect::<Vec<_>>().join(", "))
            }
            Self::List(values) => {
                let values = values.iter().map(Self::to_string);
                write!(f, "({})", values.collect::<Vec<_>>().join(", "))
            }
            Self::Text(text) => write!(f, "'{}'", text.escape_debug()),
            Self::Number(number) => write!(f, "{number}"),
            Self::Word(word) => f.write_str(word),
        }
    }
}

/// Reads from the beginning of `rest`.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn value(&mut self) -> Option<PythonValue> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.skip_space();
        let value = match self.rest.chars().next()? {
            '{' => self.braces()?,
            '(' => self.list('(', ')')?,
            '[' => self.list('[', ']')?,
            '\'' | '"' => PythonValue::Text(self.texts()?),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => {
                PythonValue::Number(self.number()?)
            }
            c if c.is_alphabetic() || c == '_' => self.word()?,
            _ => return None,
        };
        self.depth -= 1;
        Some(value)
    }

    /// A name, or the arguments of a call.
    fn word(&mut self) -> Option<PythonValue> {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
        let word = self.take_while(is_part);
        if matches!(word, "r" | "b" | "u" | "f") && self.rest.starts_with(['\'', '"']) {
            return Some(PythonValue::Text(self.texts()?));
        }
        if !self.eat('(') {
            return Some(PythonValue::Word(word.to_owned()));
        }
        let mut entries = Vec::new();
        while !self.eat(')') {
            self.skip_space();
            let key = self
                .take_while(|c| c.is_alphanumeric() || c == '_')
                .to_owned();
            if key.is_empty() || !self.eat('=') {
                return None;
            }
            entries.push((key, self.value()?));
            self.separator(')')?;
        }
        // Only `dict` says what its arguments mean.
        match word {
            "dict" | "ConfigDict" => Some(PythonValue::Dict(entries)),
            _ => Some(PythonValue::Word(word.to_owned())),
        }
    }

    fn braces(&mut self) -> Option<PythonValue> {
        self.eat('{');
        let mut entries = Vec::new();
        while !self.eat('}') {
            let key = match self.value()? {
                PythonValue::Text(key) | PythonValue::Word(key) => key,
                other => other.to_string(),
            };
            if !self.eat(':') {
                return None;
            }
            entries.push((key, self.value()?));
            self.separator('}')?;
        }
        Some(PythonValue::Dict(entries))
    }

    /// A list or tuple; without a comma, round brackets only hold a value together.
    fn list(&mut self, open: char, close: char) -> Option<PythonValue> {
        self.eat(open);
        let mut values = Vec::new();
        let mut commas = 0;
        while !self.eat(close) {
            values.push(self.value()?);
            commas += usize::from(self.separator(close)?);
        }
        if open == '(' && commas == 0 && values.len() == 1 {
            return values.pop();
        }
        Some(PythonValue::List(values))
    }

    /// Texts that follow each other are one.
    fn texts(&mut self) -> Option<String> {
        let mut all = String::new();
        loop {
            self.skip_space();
            let Some(quote @ ('\'' | '"')) = self.rest.chars().next() else {
                return Some(all);
            };
            let mut escaped = false;
            let mut end = None;
            for (at, c) in self.rest.char_indices().skip(1) {
                if escaped {
                    escaped = false;
                } else if c == quote {
                    end = Some(at);
                    break;
                } else if c == '\\' {
                    escaped = true;
                    continue;
                }
                all.push(c);
            }
            self.rest = &self.rest[end? + 1..];
        }
    }

    fn number(&mut self) -> Option<f64> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_');
        self.take_while(is_part).replace('_', "").parse().ok()
    }

    /// Whether a comma follows; `None` if neither that nor `close` does.
    fn separator(&mut self, close: char) -> Option<bool> {
        let comma = self.eat(',');
        self.skip_space();
        (comma || self.rest.starts_with(close)).then_some(comma)
    }

    fn eat(&mut self, c: char) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_while(&mut self, takes: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !takes(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// Spaces, ends of lines and comments.
    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        PythonValue::assigned(text, "model").map(|value| value.to_string())
    }

    #[test]
    fn literals_are_read_as_python_reads_them() {
        for (text, expected) in [
            (
                "model = dict(\n    a=1,\n    b=(1, 2, ),\n)",
                "dict(a=1, b=(1, 2))",
            ),
            (
                "model = {'a': [1., -2e-05], \"b\": None}",
                "dict(a=(1, -0.00002), b=None)",
            ),
            (
                "model = dict(a=(1, ), b=(1), c=())",
                "dict(a=(1), b=1, c=())",
            ),
            ("model = 'it''s' ' one'", "'its one'"),
            (
                "model = dict(a='x=(', b=r'\\'')  # )",
                "dict(a='x=(', b='\\'')",
            ),
            (
                "model = dict(a=Some.call(x=1), b=True)",
                "dict(a=Some.call, b=True)",
            ),
            (
                "model = 1\nmodel=2\nmodels = 3\n model = 4\nmodel == 5\n",
                "2",
            ),
            (
                "x = 1\r\nmodel = dict(# a remark\r\n  a=1_000)\r\n",
                "dict(a=1000)",
            ),
        ] {
            assert_eq!(parse(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn texts_are_written_as_they_are_read() {
        for (text, expected) in [
            ("road", "'road'"),
            ("it's \\", "'it\\'s \\\\'"),
            ("a\nb\u{1b}ö", "'a\\nb\\u001bö'"),
        ] {
            assert_eq!(python_text(text), expected);
        }
        let written = format!("model = {}", python_text("it's \\"));
        let read = PythonValue::assigned(&written, "model");
        assert_eq!(read, Some(PythonValue::Text("it's \\".into())));
    }

    #[test]
    fn what_is_no_literal_gives_nothing() {
        let deep = format!("model = {}{}", "(".repeat(100_000), ")".repeat(100_000));
        for text in [
            "",
            "model",
            "model =",
            "model = dict(a=1",
            "model = dict(a 1)",
            "model = dict(1)",
            "model = dict(a=1 b=2)",
            "model = {1: 2",
            "model = 'open",
            "model = 1x",
            "model = lambda: 1 +",
            "model = @",
            deep.as_str(),
        ] {
            let found = parse(text);
            // A word is all that is read of `lambda`.
            assert!(
                found.is_none() || found.as_deref() == Some("lambda"),
                "{text}: {found:?}"
            );
        }
    }
}
