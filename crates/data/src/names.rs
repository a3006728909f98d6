//! Names of samples.

use std::collections::{HashMap, HashSet};

/// Bytes of the longest name that a picture in the layout of Cityscapes can have, and so of one that
/// room is left behind for what is made of a picture.
const LONGEST: usize = 255 - "_leftImg8bit.png".len();

/// `name`, or its beginning and a number that tells it from others, where it has more than `longest`
/// bytes.
///
/// # Panics
/// If `longest` is less than the 17 bytes of such a number.
pub fn short_name(name: &str, longest: usize) -> String {
    if name.len() <= longest {
        return name.to_owned();
    }
    // FNV-1a, the same in every run.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let number = format!("~{hash:016x}");
    let mut end = longest - number.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{number}", &name[..end])
}

/// A name of its own for each file of several folders, `(folder, file)`: the file's where only one
/// folder has it, else with the folder's in front, and with a number behind where that is taken, too.
/// With a folder's, names are shortened to 239 bytes, so that files can be named after them.
pub fn unique_names(files: &[(String, String)]) -> Vec<String> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for (_, file) in files {
        *uses.entry(file).or_default() += 1;
    }
    let own = uses.iter().filter(|(_, count)| **count == 1);
    let mut taken: HashSet<String> = own.map(|(file, _)| (*file).to_owned()).collect();
    let mut name = |(folder, file): &(String, String)| {
        if uses[file.as_str()] == 1 {
            return file.clone();
        }
        let first = format!("{folder}_{file}");
        let others = (2..).map(|i| short_name(&format!("{first}_{i}"), LONGEST));
        let first = short_name(&first, LONGEST);
        let mut names = std::iter::once(first).chain(others);
        let name = names.find(|name| !taken.contains(name));
        let name = name.expect("there are more numbers than names");
        taken.insert(name.clone());
        name
    };
    files.iter().map(&mut name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let owned = |&(folder, file): &(&str, &str)| (folder.to_owned(), file.to_owned());
        let files: Vec<_> = files.iter().map(owned).collect();
        assert_eq!(unique_names(&files), expected);
    }

    #[test]
    fn long_names_stay_apart_and_leave_room() {
        let (one, other) = ("ä".repeat(119) + "1", "ä".repeat(119) + "2");
        assert_eq!(short_name(&one, LONGEST), one);
        let [short, another] = [&one, &other].map(|name| short_name(name, 200));
        assert!(short.starts_with("ää") && short.len() <= 200 && short != another);
        let files = ["a", "b"].map(|folder| (folder.to_owned(), one.clone()));
        let names = unique_names(&files);
        assert!(
            names[0].starts_with("a_ää") && names[1].starts_with("b_ää"),
            "{names:?}"
        );
        assert!(names.iter().all(|name| name.len() <= LONGEST));
        // Folders may have long names, too.
        let files = ["x", "y"].map(|last| ("f".repeat(250) + last, "f".to_owned()));
        let names = unique_names(&files);
        assert!(names[0] != names[1] && names.iter().all(|name| name.len() <= LONGEST));
    }

    #[test]
    fn only_names_of_several_folders_tell_the_folder() {
        check(
            &[("ulm", "ulm_1"), ("bonn", "bonn_1")],
            &["ulm_1", "bonn_1"],
        );
        check(
            &[("a", "f_1"), ("a", "f_2"), ("b", "f_1"), ("c", "x")],
            &["a_f_1", "f_2", "b_f_1", "x"],
        );
    }

    #[test]
    fn a_name_made_of_two_is_never_that_of_another_file() {
        check(
            &[
                ("a", "f"),
                ("b", "f"),
                ("c", "a_f"),
                ("d", "a_f"),
                ("e", "b_f"),
            ],
            &["a_f", "b_f_2", "c_a_f", "d_a_f", "b_f"],
        );
        check(
            &[
                ("a", "b_c"),
                ("a_b", "c"),
                ("x", "b_c"),
                ("x", "c"),
                ("y", "x_c"),
            ],
            &["a_b_c", "a_b_c_2", "x_b_c", "x_c_2", "x_c"],
        );
    }
}
