//! Python's pickles of protocol 2, as far as a checkpoint needs them.
//!
//! Nothing is memorised: what occurs twice is written twice. Only what `torch.load(weights_only=True)` reads is used.

/// A pickle that is being written.
pub(crate) struct Pickle(Vec<u8>);

impl Pickle {
    pub fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    /// The whole pickle.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }

    pub fn text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).expect("texts of a checkpoint are short");
        self.0.push(b'X');
        self.0.extend(length.to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    pub fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.0.push(b'J');
                self.0.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend(value.to_le_bytes());
            }
        }
    }

    pub fn bool(&mut self, value: bool) {
        self.0.push(if value { 0x88 } else { 0x89 });
    }

    /// A class or function.
    pub fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
    }

    /// A tuple of what `write` writes.
    pub fn tuple(&mut self, write: impl FnOnce(&mut Self)) {
        self.0.push(b'(');
        write(self);
        self.0.push(b't');
    }

    /// A list of what `write` writes.
    pub fn list(&mut self, write: impl FnOnce(&mut Self)) {
        self.0.extend(b"](");
        write(self);
        self.0.push(b'e');
    }

    /// A dictionary of the keys and values that `write` writes.
    pub fn dict(&mut self, write: impl FnOnce(&mut Self)) {
        self.0.push(b'}');
        self.items(write);
    }

    /// The same, that keeps its order: `collections.OrderedDict`.
    pub fn ordered_dict(&mut self, write: impl FnOnce(&mut Self)) {
        self.global("collections", "OrderedDict");
        self.0.extend(b")R");
        self.items(write);
    }

    fn items(&mut self, write: impl FnOnce(&mut Self)) {
        self.0.push(b'(');
        write(self);
        self.0.push(b'u');
    }

    /// A tensor of `shape` whose values, of PyTorch's type `storage`, are the file `key` of the archive.
    pub fn tensor(&mut self, storage: &str, key: usize, shape: &[usize]) {
        let size = |value: usize| i64::try_from(value).expect("a tensor fits into memory");
        let mut strides = vec![1; shape.len()];
        for place in (1..shape.len()).rev() {
            strides[place - 1] = strides[place] * shape[place];
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|arguments| {
            arguments.tuple(|id| {
                id.text("storage");
                id.global("torch", storage);
                id.text(&key.to_string());
                id.text("cpu");
                id.int(size(shape.iter().product()));
            });
            // The tuple is a persistent id.
            arguments.0.push(b'Q');
            arguments.int(0);
            for numbers in [shape, &strides] {
                arguments.tuple(|tuple| numbers.iter().for_each(|value| tuple.int(size(*value))));
            }
            arguments.bool(false);
            arguments.ordered_dict(|_| ());
        });
        self.0.push(b'R');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_python_pickles_them() {
        let mut pickle = Pickle::new();
        pickle.dict(|dict| {
            dict.text("ä");
            dict.tuple(|tuple| {
                tuple.int(-2);
                tuple.int(1 << 40);
                tuple.bool(true);
                tuple.list(|_| ());
            });
        });
        let expected = b"\x80\x02}(X\x02\0\0\0\xc3\xa4(J\xfe\xff\xff\xff\x8a\x08\0\0\0\0\0\x01\0\0\
                         \x88](etu.";
        assert_eq!(pickle.finish(), expected);
    }
}
