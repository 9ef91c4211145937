//! Images to publish, the command, and a reader that believes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vmstream::source::published::Pointer;
use vmstream::tree::Tree;

/// splitmix64 (Steele, Lea, Flood 2014): contents that are the same on every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// `bytes` bytes of noise.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()).collect();
    noise.truncate(bytes);
    noise
}

/// A sparse file of `size` bytes with noise at some offsets, which need not be where blocks begin.
pub fn image(path: &Path, size: u64, pieces: &[(u64, usize)]) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &(offset, bytes) in pieces {
        file.write_all_at(&noise(offset, bytes), offset).unwrap();
    }
}

/// The usual one: 5 MiB and a bit, with a run, a lonely byte, and zeroes that are written and no hole.
pub fn small_image(path: &Path) {
    image(path, (5 << 20) + 700, &[(0, 100_000), ((2 << 20) + 5, 1), (3 << 20, 300_000), ((5 << 20) + 1, 600)]);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; 200_000], 4 << 20).unwrap();
}

pub fn vmstream(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmstream")).args(arguments).output().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Publishes; answers the link that was printed.
pub fn publish(image: &Path, site: &Path, more: &[&str]) -> String {
    let output = vmstream(&[&["publish", text(image), "-o", text(site)], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

/// What publishing says that must fail.
pub fn refused(image: &Path, site: &Path, more: &[&str]) -> String {
    let output = vmstream(&[&["publish", text(image), "-o", text(site)], more].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// All files below a directory: their bytes by their names from there on.
pub fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                files.insert(path.strip_prefix(directory).unwrap().to_owned(), std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// Names of what a server would show.
pub fn shown(site: &Path) -> Vec<String> {
    let names = std::fs::read_dir(site).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// What is published under a name, after every byte of the image was checked against the root of its pointer.
pub struct Seen {
    pub pointer: Pointer,
    pub tree: Tree,
    pub image: Vec<u8>,
}

pub fn see(site: &Path, name: &str) -> Seen {
    let pointer = Pointer::parse(&std::fs::read(site.join(format!("{name}.vmp"))).unwrap()).unwrap();
    let tree = Tree::read(&std::fs::read(site.join(&pointer.tree.name)).unwrap(), pointer.root).unwrap();
    let image = std::fs::read(site.join(&pointer.image)).unwrap();
    assert_eq!(image.len() as u64, pointer.geometry.size());
    let block_bytes = pointer.geometry.block_bytes() as usize;
    for (block, bytes) in pointer.geometry.all().iter().zip(image.chunks(block_bytes)) {
        tree.check(block, bytes).unwrap();
    }
    if let Some(packs) = &pointer.packs {
        let bytes = std::fs::read(site.join(&packs.name)).unwrap();
        assert_eq!(bytes.len() as u64, packs.bytes);
        let hash = blake3::hash(&bytes).to_hex();
        assert_eq!(packs.name, format!("{name}-{}.vmk", &hash[..12]));
    }
    Seen { pointer, tree, image }
}
