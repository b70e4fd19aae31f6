# LAPACK is the library of the PyPI package scipy-openblas32. It is put beside _native, which
# loads it when an op first needs it; a build without it works, and those ops say what is missing.

execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.metadata as m, scipy_openblas32 as o\n\
licence = next(f for f in m.files('scipy_openblas32') if f.name == 'LICENSE.txt')\n\
print(o.get_lib_dir(), o.get_library(fullname=True), licence.locate(), sep=';')"
  OUTPUT_VARIABLE found
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
if(found)
  list(GET found 0 directory)
  list(GET found 1 name)
  list(GET found 2 licence)
  set(target ${CMAKE_CURRENT_BINARY_DIR}/libscipy_openblas)
  configure_file(${directory}/${name} ${target}.so COPYONLY)
  configure_file(${licence} ${target}.LICENSE.txt COPYONLY)
else()
  message(WARNING "pixleap: scipy-openblas32 was not found; ops that need LAPACK will not run")
endif()
