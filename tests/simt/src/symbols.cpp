// Names for addresses, read from the symbol table of the file they were loaded from. Kernels have internal linkage, so
// the dynamic symbols that dladdr knows are not enough.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

#include "scheduler.h"

#ifdef __ELF__
#include <elf.h>
#include <link.h>
#endif

namespace simt {
namespace {

std::string demangled(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : symbol;
  std::free(text);
  return result;
}

#ifdef __ELF__
// The function that covers `offset` in the file, empty where none is known.
std::string symbol_at(const char* path, uint64_t offset) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const char* base = file.data();
  const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(base);
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(base + header.e_shoff);
  for (int s = 0; s < header.e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(base + sections[s].sh_offset);
    const char* strings = base + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; ++i)
      if ((symbols[i].st_info & 0xf) == STT_FUNC && offset >= symbols[i].st_value &&
          offset < symbols[i].st_value + symbols[i].st_size)
        return demangled(strings + symbols[i].st_name);
  }
  return "";
}
#endif

}  // namespace

std::string function_name(const void* address) {
  static std::map<const void*, std::string> known;
  std::string& name = known[address];
  if (!name.empty()) return name;
  Dl_info info{};
  if (dladdr(address, &info) == 0) return name = "?";
#ifdef __ELF__
  auto offset = uint64_t(static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase));
  name = symbol_at(info.dli_fname, offset);
  if (!name.empty()) return name;
#endif
  return name = info.dli_sname ? demangled(info.dli_sname) : "?";
}

std::string source_line(const void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0) return "";
  // One byte back, from the return address into the call.
  auto offset = static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' %#tx 2>/dev/null", info.dli_fname, offset);
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  char line[1024] = "";
  std::string text = std::fgets(line, sizeof line, pipe) ? line : "";
  pclose(pipe);
  text = text.substr(0, text.find_first_of(" \n"));  // without the discriminator
  return text.empty() || text[0] == '?' ? "" : " [" + text + "]";
}

}  // namespace simt
