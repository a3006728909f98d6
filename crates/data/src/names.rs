//! Names of samples.

use std::collections::{HashMap, HashSet};

/// A name of its own for each file of several folders, `(folder, file)`: the file's where only one
/// folder has it, else with the folder's in front, and with a number behind where that is taken, too.
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
        let others = (2..).map(|i| format!("{first}_{i}"));
        let mut names = std::iter::once(first.clone()).chain(others);
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
